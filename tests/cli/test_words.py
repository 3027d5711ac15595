"""Words and files that are almost numbers, configurations or weights: one sentence, whatever reads them."""

import os
import pickle
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from analysis.cli import main as analysis
from rwkv_lab.cli import convert, data, evaluate, generate, runs, tracking
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.config.fields import instance
from rwkv_lab.config.schema import OpsConfig, TrainerConfig
from rwkv_lab.data.corpora.kjv import KjvConfig
from rwkv_lab.data.token_cache import cache_dir
from rwkv_lab.ops.build import parse_archs
from tests.in_process import make_here

DIGIT = "²"  # str.isdigit() is true, int() fails


def configs() -> list[type]:
    members = [member for kind in registry.KINDS for member in registry.members(kind).values()]
    return [
        TrainerConfig,
        OpsConfig,
        *(member for member in members if isinstance(member, type) and is_dataclass(member)),
    ]


@pytest.mark.parametrize("config", configs(), ids=lambda config: f"{config.__module__}.{config.__name__}")
def test_no_number_of_a_configuration_is_a_superscript(config: type) -> None:
    for name, hint in get_type_hints(config).items():
        kinds = {hint, *get_args(hint)} & {int, float}
        if name in config.__dataclass_fields__ and kinds and str not in get_args(hint):  # type: ignore[attr-defined]
            with pytest.raises(UserError):
                instance(config, {name: DIGIT})


NUMBERS = {
    "generate": lambda: generate.main(["RUN", "--length", DIGIT]),
    "list": lambda: runs.main(["list", f"seed={DIGIT}"]),
    "train-bpe": lambda: data.main(["train-bpe", "out.json", DIGIT, "text"]),
    "sync": lambda: tracking.main(["sync", "--limit", DIGIT]),
    "arch": lambda: parse_archs(DIGIT),
    "fit": lambda: analysis(["fit", "RUN", "--window", DIGIT]),
    "optimal": lambda: analysis(["optimal", "FIT", "--steps", DIGIT]),
    "compare": lambda: analysis(["compare", "RUN", "--at-tokens", DIGIT]),
    "weights": lambda: analysis(["weights", "RUN", "--distance", DIGIT]),
}


@pytest.mark.parametrize("command", NUMBERS)
def test_no_number_of_a_command_line_is_a_superscript(command: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        NUMBERS[command]()
    assert "number" in str(raised.value) or DIGIT in str(raised.value)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that the system does not know, and no HOME."""

    def unknown(*_: object) -> None:
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_the_cache_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.cache_dir"):
        cache_dir(KjvConfig())
    assert cache_dir(KjvConfig(cache_dir=str(tmp_path))) == tmp_path


@pytest.mark.usefixtures("homeless")
def test_a_library_that_asks_for_the_home_ends_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: print(Path.home())) == 2
    said = capsys.readouterr().err
    assert "HOME" in said and said.count("\n") == 1


def bomb(depth: int = 20, width: int = 9) -> str:
    aliases = (f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]\n" for i in range(1, depth))
    return f"a0: &a0 [{', '.join('x' * width)}]\n{''.join(aliases)}"


CONFIGS = {
    "aliases": bomb(),
    "merged": "a: &a {b: 1}\nc: {<<: *a}\n",
    "deep": "a: " + "[" * 20_000,
    "indented": "".join(f"{'  ' * i}a:\n" for i in range(300)) + "  " * 301 + "[",
    "large": "".join(f"key{i}: {i}\n" for i in range(50_000)),
    "bytes": b"a: \xff\xfe\n",
    "nul": "a: \0\n",
    "code": "a: !!python/object/apply:os.getcwd []\n",
    "list": "[1]\n",
    "empty": "",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of two updates, without checksums as earlier versions made it."""
    from rwkv_lab.runs import load
    from rwkv_lab.runs.manifest import write_manifest

    with pytest.MonkeyPatch.context() as patch:
        here = make_here(tmp_path_factory.mktemp("words"), patch)
        assert here.run("trainer.steps=2", "trainer.sample_length=0") == 0
        (manifest,) = here.runs.glob("*/*/run.json")
    write_manifest(manifest.parent, load(manifest.parent).manifest | {"files": {}})
    return manifest.parent


READERS: dict[str, Callable[[Path], int | None]] = {
    "show": lambda run: runs.main(["show", str(run)]),
    "show --json": lambda run: runs.main(["show", str(run), "--json"]),
    "diff": lambda run: runs.main(["diff", str(run), str(run)]),
    "evaluate": lambda run: evaluate.main([str(run)]),
    "fit": lambda run: analysis(["fit", str(run), "--out", str(run / "fit")]),
}


@pytest.mark.parametrize("content", CONFIGS)
def test_what_is_no_configuration_is_refused_by_its_name(run: Path, capsys, content: str) -> None:
    text = CONFIGS[content]
    (run / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for reader in READERS.values():
        assert main_guard(lambda reader=reader: reader(run)) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and len(said.err) < 500
        assert str(run / "config.yaml") in said.err
    assert main_guard(lambda: runs.main(["list", "--runs-dir", str(run.parents[1])])) == 0
    assert run.name in capsys.readouterr().out


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.mark),)


WEIGHTS: dict[str, Callable[[Path], int | None]] = {
    "generate": lambda run: generate.main([str(run)]),
    "weights": lambda run: analysis(["weights", str(run)]),
    "weights of a file": lambda run: analysis(["weights", str(run / "model.safetensors")]),
    "convert": lambda run: convert.main([str(run), str(run / "out.pth"), "--to", "original"]),
}


@pytest.mark.parametrize("reader", WEIGHTS)
def test_a_pickle_named_safetensors_is_refused_by_its_name(run: Path, tmp_path: Path, capsys, reader: str) -> None:
    (run / "model.safetensors").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    assert main_guard(lambda: WEIGHTS[reader](run)) == 2
    said = capsys.readouterr().err
    assert str(run / "model.safetensors") in said and said.count("\n") == 1
    assert not (tmp_path / "ran").exists()
