"""python -m rwkv_lab.runs: list, show, diff, rm, unlock."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rwkv_lab.cli import runs as command_line
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.runs import listing, load, lock, select
from rwkv_lab.util.paths import write_json

RESULT = {"val_loss": 1.5, "val_bpb": 2.25, "train_loss": 1.4, "tokens_per_second": 1234.0, "eval": "windows"}


def make_run(root: Path, study: str, name: str, status: str, **manifest: object) -> Path:
    folder = root / study / name
    folder.mkdir(parents=True)
    started = {"format": 1, "id": name[-8:], "started": "2026-01-01T00:00:00+00:00", "overrides": ["seed=1"]}
    write_json(folder / "run.json", started | {"status": status} | manifest)
    seed = name.rsplit("-", 2)[1][1:]
    (folder / "config.yaml").write_text(f"seed: {seed}\nmodel:\n  name: rwkv_v4\n  n_layer: {2 + int(seed)}\n")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make_run(root, "one", "rwkv_v4-builtin-s1-aaaaaaaa", "complete", result=RESULT, ended="2026-01-02T00:00:00+00:00")
    make_run(root, "one", "rwkv_v4-builtin-s2-bbbbbbbb", "failed", reason="the loss became nan")
    make_run(root, "one", "mha_pro-enwik8-s1-cccccccc", "running")
    make_run(root, "two", "mha_pro-enwik8-s1-dddddddd", "failed", reason="No space left on device")
    return root


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main_guard(lambda: command_line.main([*map(str, arguments)]))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_list(command: Command, root: Path) -> None:
    code, out, _ = command("list", root)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["run", "status", "model", "data", "seed", "val_bpb", "tokens/s", "age"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["one/mha_pro-enwik8-s1-cccccccc", "interrupted"],
        ["one/rwkv_v4-builtin-s1-aaaaaaaa", "complete"],
        ["one/rwkv_v4-builtin-s2-bbbbbbbb", "failed"],
        ["two/mha_pro-enwik8-s1-dddddddd", "failed"],
    ]
    assert lines[2].split()[2:7] == ["rwkv_v4", "builtin", "1", "2.2500", "1234"]


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (("--status", "failed"), "bd"),
        (("--status", "complete,interrupted"), "ca"),
        (("--model", "rwkv_v4"), "ab"),
        (("--data", "enwik8", "--status", "failed"), "d"),
        (("--seed", "2"), "b"),
    ],
)
def test_list_filtered_for_programs(command: Command, root: Path, filters: tuple[str, ...], ids: str) -> None:
    code, out, _ = command("list", root, "--json", *filters)
    assert code == 0
    assert "".join(row["run"][-1] for row in json.loads(out)) == ids


def test_list_sorted_puts_unknown_last(command: Command, root: Path) -> None:
    _, out, _ = command("list", root, "--json", "--sort", "val_bpb")
    assert [row["val_bpb"] for row in json.loads(out)] == [2.25, None, None, None]


def test_list_of_a_run_that_cannot_be_read(command: Command, root: Path) -> None:
    (root / "two" / "mha_pro-enwik8-s1-dddddddd" / "run.json").write_text('{"format": 1, "stat')
    code, out, _ = command("list", root / "two", "--json")
    assert code == 0
    assert json.loads(out)[0]["status"] == "unreadable"


def test_running_is_known_by_the_lock(command: Command, root: Path) -> None:
    held = lock.acquire(root / "one" / "mha_pro-enwik8-s1-cccccccc")
    assert held is not None
    try:
        _, out, _ = command("list", root, "--json", "--status", "running")
    finally:
        held.release()
    assert [row["run"] for row in json.loads(out)] == ["mha_pro-enwik8-s1-cccccccc"]


def test_studies_are_named_below_runs(root: Path) -> None:
    assert {run.study for run in select.studies([], root)} == {"one", "two"}
    assert {run.study for run in select.studies(["two"], root)} == {"two"}
    assert select.studies([], root / "nothing") == []
    with pytest.raises(UserError, match=r"there is no study oen \(did you mean 'one'\?\)"):
        select.studies(["oen"], root)


@pytest.mark.parametrize("text", ["one/rwkv_v4-builtin-s2-bbbbbbbb", "rwkv_v4-builtin-s2", "bbbbbbbb"])
def test_a_run_has_many_names(root: Path, text: str) -> None:
    assert select.one(text, root).name == "rwkv_v4-builtin-s2-bbbbbbbb"


def test_names_that_are_none_or_several(root: Path) -> None:
    with pytest.raises(UserError, match="mha_pro-enwik8 is the name of 2 runs: one/mha_pro"):
        select.one("mha_pro-enwik8", root)
    with pytest.raises(UserError, match="there is no run rwkv_v9"):
        select.one("rwkv_v9", root)


def test_show(command: Command, root: Path) -> None:
    code, out, _ = command("show", root / "one" / "rwkv_v4-builtin-s2-bbbbbbbb")
    assert code == 0
    lines = dict(words for line in out.splitlines() if len(words := line.split(maxsplit=1)) == 2)
    assert lines["status"] == "failed"
    assert lines["reason"] == "the loss became nan"
    assert lines["command"] == "python run.py seed=1"
    _, out, _ = command("show", root / "one" / "rwkv_v4-builtin-s2-bbbbbbbb", "--json")
    shown = json.loads(out)
    assert (shown["status"], shown["config"]["model"]["n_layer"]) == ("failed", 4)


def test_diff(command: Command, root: Path) -> None:
    left, right = root / "one" / "rwkv_v4-builtin-s1-aaaaaaaa", root / "one" / "rwkv_v4-builtin-s2-bbbbbbbb"
    _, out, _ = command("diff", left, right, "--json")
    found = json.loads(out)
    assert found["seed"] == [1, 2]
    assert found["model.n_layer"] == [3, 4]
    assert found["run.json.result.val_bpb"] == [2.25, None]
    assert "model.name" not in found
    _, out, _ = command("diff", left, right)
    assert out.splitlines()[1].split() == ["seed", "1", "2"]
    _, out, _ = command("diff", left, left)
    assert out == "the two runs do not differ\n"


def test_rm_failed(command: Command, root: Path) -> None:
    code, out, _ = command("rm", "--failed", root / "one", root / "two", "--dry-run")
    assert (code, "2 to remove" in out) == (0, True)
    assert len(list(root.glob("*/*/run.json"))) == 4
    code, out, _ = command("rm", "--failed", root / "one", root / "two")
    assert (code, "2 removed" in out) == (0, True)
    assert sorted(path.parent.name[-1] for path in root.glob("*/*/run.json")) == ["a", "c"]
    assert not (root / "two").exists()


def test_rm_leaves_a_running_run_alone(command: Command, root: Path) -> None:
    folder = root / "one" / "mha_pro-enwik8-s1-cccccccc"
    held = lock.acquire(folder)
    assert held is not None
    try:
        code, out, _ = command("rm", folder)
    finally:
        held.release()
    assert code == 1
    assert "is running" in out
    assert (folder / "run.json").exists()


def test_rm_of_everything_by_accident(command: Command) -> None:
    code, _, err = command("rm")
    assert code == 2
    assert err.startswith("error: rm needs runs")


def test_unlock(command: Command, root: Path) -> None:
    folder = root / "one" / "mha_pro-enwik8-s1-cccccccc"
    (folder / lock.LOCK_NAME).write_text("")
    code, out, _ = command("unlock", folder)
    assert (code, "is not locked" in out) == (0, True)
    assert not (folder / lock.LOCK_NAME).exists()
    held = lock.acquire(folder)
    assert held is not None
    try:
        code, out, _ = command("unlock", folder)
        assert code == 1
        assert "is locked by a living process" in out
        assert lock.is_held(folder)
        code, _, _ = command("unlock", folder, "--force")
        assert code == 0
    finally:
        held.release()


def test_age_when_the_clock_went_back() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert listing.age("2027-01-01T00:00:00+00:00", now) == 0
    assert listing.age("2025-12-31T23:00:00+00:00", now) == 3600
    assert listing.age(None, now) is None
    assert [listing.ago(seconds) for seconds in (5, 300, 7200, 864000, None)] == ["5 s", "5 min", "2 h", "10 d", "-"]


def test_configuration_that_would_run_code_runs_none(root: Path, tmp_path: Path) -> None:
    folder = root / "one" / "rwkv_v4-builtin-s1-aaaaaaaa"
    (folder / "config.yaml").write_text(f"seed: !!python/object/apply:os.system ['touch {tmp_path / 'ran'}']\n")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        load(folder).config  # noqa: B018
    assert not (tmp_path / "ran").exists()


def test_no_torch(root: Path) -> None:
    probe = (
        "import sys; sys.argv = ['runs', 'list', sys.argv[1]]; from rwkv_lab.cli.runs import main; main(sys.argv[1:]);"
        "sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe, root], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ("", ["required: COMMAND", "--help"]),
        ("lst", ["COMMAND: lst is unknown", "did you mean 'list'?", "unlock"]),
        ("list --nope", ["unrecognized arguments: --nope"]),
        ("list --sort age,run", ["--sort: age,run is unknown", "val_bpb"]),
        ("list --status complet", ["--status complet is unknown", "did you mean 'complete'?", "interrupted"]),
        ("list --model rwkv_v9", ["--model rwkv_v9 is unknown", "rwkv_v4"]),
        ("list --seed one", ["--seed one is no seed"]),
        ("show", ["required: RUN"]),
        ("show nothing", ["there is no run nothing", "list"]),
        ("show .", ["there is no run ."]),
        ("show ROOT/one", ["one holds 3 runs: name one, such as one/"]),
        ("diff ROOT/one/rwkv_v4-builtin-s1-aaaaaaaa", ["required: RUN"]),
        ("rm ROOT/two", ["two holds 1 runs"]),
        ("unlock", ["required: RUN"]),
    ],
)
def test_a_mistake_is_one_sentence(command: Command, root: Path, words: str, fragments: list[str]) -> None:
    code, out, err = command(*words.replace("ROOT", str(root)).split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for fragment in fragments:
        assert fragment in err


@pytest.mark.parametrize("content", ["{", "[]", '{"status": 5}', '{"format": "x"}', '{"result": [1]}', "\xff"])
def test_a_damaged_manifest_is_listed(command: Command, root: Path, content: str) -> None:
    damaged = root / "one" / "rwkv_v4-builtin-s1-aaaaaaaa"
    (damaged / "run.json").write_bytes(content.encode("latin-1"))
    code, out, _ = command("list", root / "one", "--status", "unreadable", "--json")
    assert code == 0
    assert [row["path"] for row in json.loads(out)] == [str(damaged)]
    assert command("show", damaged)[0] == 2
    assert command("rm", damaged)[0] == 0
    assert not damaged.exists()
