"""Commands on a narrow terminal that is not UTF-8, about runs whose names, data and samples would steer it."""

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from analysis.cli import main as analysis
from rwkv_lab import models
from rwkv_lab.cli import data, generate, runs
from rwkv_lab.config.errors import main_guard
from rwkv_lab.runs import load, provenance
from rwkv_lab.runs.manifest import write_manifest
from rwkv_lab.sweeps import progress
from tests.in_process import make_here

EVIL = "\x1b]0;title\x07\x1b[31m\u202e\x9b2J “ü”"
STUDY = "a_study_of_a_rather_long_name_that_goes_on"
Show = Callable[[Callable[[], int | None]], list[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a curve and two studies of runs, all of them with escapes where a user can put any."""
    folder = tmp_path_factory.mktemp("evil")
    with pytest.MonkeyPatch.context() as patch:
        here = make_here(folder, patch)
        here.text.write_text(f"{EVIL} {here.text.read_text()}")
        assert here.run("trainer.sample_length=0") == 0
        (made,) = (path.parent for path in here.runs.glob("*/*/run.json"))
    config, manifest = load(made).config, load(made).manifest
    for study in (STUDY, f"study {EVIL}"):
        for i in (1, 2):
            path = folder / "studies" / study / f"rwkv_v4-text-s{i}-0000000{i}"
            shutil.copytree(made, path)
            (path / "sample.txt").write_text(EVIL)
            changed = config | {"seed": i, "study": study, "model": config["model"] | {"n_embd": 16 * i}}
            changed["data"] = config["data"] | {"path": f"/{EVIL}{i}.txt"}
            (path / "config.yaml").write_text(yaml.safe_dump(changed, allow_unicode=False))
            status = {"status": "failed", "reason": f"{EVIL} failed"} if i == 2 else {}
            code = {"code": provenance.code_fingerprint(), "files": {}, "overrides": [f"note={EVIL}"]}
            write_manifest(path, manifest | code | status)
    rows = "".join(f"{i},{1e-3 - 4e-6 * i},{2 + i**-0.5}\n" for i in range(1, 200))
    (folder / f"[red]{EVIL}.csv").write_text(f"step,lr,loss\n{rows}")
    return folder


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    """Run a command on a terminal of 60 columns that knows ASCII only; return its lines."""

    def call(command: Callable[[], int | None]) -> list[str]:
        raw = io.BytesIO()
        monkeypatch.setenv("COLUMNS", "60")
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        assert main_guard(command) == 0
        sys.stdout.flush()
        shown = raw.getvalue().decode("ascii")
        assert not set(shown) & {*map(chr, range(32)), "\x7f"} - {"\n"}
        return shown.splitlines()

    return call


def narrow(lines: list[str]) -> bool:
    return bool(lines) and max(map(len, lines)) <= 60


@pytest.mark.parametrize("words", [[], [STUDY], ["--ids"], [STUDY, "--ids"]])
def test_a_list_fits(place: Path, show: Show, words: list[str]) -> None:
    lines = show(lambda: runs.main(["list", *words, "--runs-dir", str(place / "studies")]))
    assert narrow(lines) and any("failed" in line for line in lines)


def test_a_view_fits(place: Path, show: Show) -> None:
    assert narrow(show(lambda: runs.main(["watch", STUDY, "--once", "--runs-dir", str(place / "studies")])))


def test_the_table_of_a_sweep_fits(place: Path, show: Show) -> None:
    found = [load(path.parent) for path in sorted((place / "studies").glob("*/*/run.json"))]
    states = [progress.run_state(run.path, run.status, run.manifest) for run in found]
    lines = show(lambda: progress.table([f"{run.study} {EVIL}" for run in found], states))
    assert narrow([line for line in lines if not line.startswith("failed: ")])


def test_a_comparison_fits(place: Path, show: Show, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("analysis.compare.page.render", lambda *_: "")
    monkeypatch.setattr("analysis.compare.figures.write_figures", lambda *_: [])
    lines = show(lambda: analysis(["compare", str(place / "studies"), "--out", str(tmp_path)]))
    tables = [line for line in lines if not line.startswith(("page", "tables"))]
    assert narrow(tables) and "2 failed" in tables[0]


@pytest.mark.parametrize("command", ["show", "show --json", "diff", "diff --json", "list --json", "rm --dry-run"])
def test_other_commands_show_escapes_harmlessly(place: Path, show: Show, command: str) -> None:
    name, *options = command.split()
    paths = [str(path.parent) for path in sorted((place / "studies").glob("*/*/run.json"))]
    given = {"diff": paths[1:3], "list": ["--runs-dir", str(place / "studies")]}.get(name, paths[-1:])
    assert any("x1b" in line or "u001b" in line for line in show(lambda: runs.main([name, *given, *options])))


def test_a_fit_reads_no_markup_in_names(place: Path, show: Show, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("analysis.plots.fit_figures.draw_fit", lambda *_: [])
    (file,) = place.glob("*.csv")
    out = tmp_path / "[" / f"] {EVIL}"
    lines = show(lambda: analysis(["fit", str(file), "--law", "vplus", "--out", str(out)]))
    assert any("[red]" in line for line in lines) and any("[/]" in line for line in lines)


def test_generated_text(place: Path, show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model = models.load
    monkeypatch.setattr(models, "load", lambda path: load_model(path, "reference"))
    run = next((place / "studies").glob("*/*/run.json")).parent
    lines = show(lambda: generate.main([str(run), EVIL, "--length", "30"]))
    assert lines[0].startswith(r"\x1b]0;title\x07\x1b[31m\u202e\x9b2J ???")


def test_information_on_data(place: Path, show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.chdir(place)
    lines = show(lambda: data.main(["info", "data=text", "data.path=text.txt"]))
    assert any("x1b" in line for line in lines)
