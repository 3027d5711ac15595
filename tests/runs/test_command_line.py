"""rwkv-lab runs: list, show, diff, watch, rm, unlock."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rwkv_lab.cli import runs as command_line
from rwkv_lab.cli.summary import prediction_lines
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.runs import Run, listing, load, store
from rwkv_lab.runs.manifest import write_manifest
from rwkv_lab.runs.run import LOCK_NAME, is_locked
from tests.runs.making import RESULT, make_run

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
    assert lines[0].split() == ["run", "status", "val_bpb", "tokens/s", "age"]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "one/mha_pro n_layer 3",
        "one/rwkv_v4 n_layer 3",
        "one/rwkv_v4 n_layer 4",
        "two/mha_pro builtin seed 1",
    ]
    assert lines[2].split()[3:6] == ["complete", "2.2500", "1234"]
    _, out, _ = command("list", root, "--ids")
    assert [line.split()[0] for line in out.splitlines()[1:]] == sorted(
        f"{path.parent.parent.name}/{path.parent.name}" for path in root.glob("*/*/run.json")
    )


def test_list_of_a_study_has_a_column_for_every_swept_key(command: Command, root: Path) -> None:
    _, out, _ = command("list", root / "one", "--sort", "seed")
    header, *lines = (line.split() for line in out.splitlines())
    assert header[:3] == ["model", "n_layer", "status"]
    assert [line[:2] for line in lines] == [["mha_pro", "3"], ["rwkv_v4", "3"], ["rwkv_v4", "4"]]
    # The seed follows from n_layer here, and can be filtered by all the same.
    _, out, _ = command("list", root / "one", "seed=2", "--ids")
    assert [line.split()[2] for line in out.splitlines()[1:]] == ["rwkv_v4-builtin-s2-bbbbbbbb"]
    _, out, _ = command("list", root / "one", "n_layer=3,4", "status=failed,complete")
    assert len(out.splitlines()) == 3
    code, _, err = command("list", root / "one", "n_lair=3")
    assert (code, "n_lair" in err) == (2, True)


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
    held = store.lock(root / "one" / "mha_pro-enwik8-s1-cccccccc")
    assert held is not None
    try:
        _, out, _ = command("list", root, "--json", "--status", "running")
    finally:
        held.release()
    assert [row["run"] for row in json.loads(out)] == ["mha_pro-enwik8-s1-cccccccc"]


def test_studies_are_named_below_runs(root: Path) -> None:
    assert {run.study for run in store.studies([], root)} == {"one", "two"}
    assert {run.study for run in store.studies(["two"], root)} == {"two"}
    assert store.studies([], root / "nothing") == []
    with pytest.raises(UserError, match=r"there is no study oen \(did you mean 'one'\?\)"):
        store.studies(["oen"], root)


@pytest.mark.parametrize(
    "text",
    ["one/rwkv_v4-builtin-s2-bbbbbbbb", "rwkv_v4-builtin-s2", "bbbbbbbb", "one/bbbbbbbb", "one/rwkv_v4-builtin-s2"],
)
def test_a_run_has_many_names(root: Path, text: str) -> None:
    assert store.select(text, root).name == "rwkv_v4-builtin-s2-bbbbbbbb"


def test_names_that_are_none_or_several(root: Path) -> None:
    with pytest.raises(UserError, match="mha_pro-enwik8 is the name of 2 runs: one/mha_pro"):
        store.select("mha_pro-enwik8", root)
    with pytest.raises(UserError, match="there is no run rwkv_v9"):
        store.select("rwkv_v9", root)


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
    assert found["trainer.log_every"] == [1, 2]
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
    code, out, _ = command("rm", "--failed", root / "one", root / "two", "--yes")
    assert (code, "2 removed" in out) == (0, True)
    assert sorted(path.parent.name[-1] for path in root.glob("*/*/run.json")) == ["a", "c"]
    assert not (root / "two").exists()


def test_rm_leaves_a_running_run_alone(command: Command, root: Path) -> None:
    folder = root / "one" / "mha_pro-enwik8-s1-cccccccc"
    held = store.lock(folder)
    assert held is not None
    try:
        code, out, _ = command("rm", folder, "--yes")
    finally:
        held.release()
    assert code == 1
    assert "is running" in out
    assert (folder / "run.json").exists()


def test_rm_removes_only_what_is_named_exactly(command: Command, root: Path) -> None:
    words = ("scratch/mha_pro-enwik8-s1-dddddddd", "mha_pro-enwik8-s1-ddd", "two/mha_pro", "nowhere/two/dddddddd")
    for word in words:
        assert command("rm", word, "--yes", "--runs-dir", root)[0] == 2
    assert len(list(root.glob("*/*/run.json"))) == 4
    folder = root / "two" / "mha_pro-enwik8-s1-dddddddd"
    code, out, err = command("rm", "dddddddd", "--runs-dir", root)
    assert (code, "--yes" in err, str(folder) in out) == (2, True, True)
    assert folder.exists()
    code, out, _ = command("rm", "two/dddddddd", "--runs-dir", root, "--yes")
    assert (code, folder.exists(), str(folder) in out) == (0, False, True)


@pytest.mark.parametrize(("answer", "left"), [("y\n", False), ("\n", True), ("no\n", True)])
def test_rm_asks_on_a_terminal(command: Command, root: Path, monkeypatch, answer: str, left: bool) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    folder = root / "two" / "mha_pro-enwik8-s1-dddddddd"
    code, _, _ = command("rm", folder)
    assert (code, folder.exists()) == (2 if left else 0, left)


def test_watch_shows_the_newest_first(command: Command, root: Path) -> None:
    folder = root / "one" / "mha_pro-enwik8-s1-cccccccc"
    manifest = json.loads((folder / "run.json").read_text())
    forecast = {"loss": 1.9, "low": 1.8, "high": 2.0}
    write_manifest(folder, manifest | {"started": "2026-01-09", "steps": 40, "forecast": forecast})
    (folder / "metrics.csv").write_text("step,train_loss,seconds\n10,2.5,30\n20,2.25,60\n")
    code, out, _ = command("watch", root / "one", "--once")
    lines = out.splitlines()
    assert (code, lines[0].split()) == (0, ["run", "status", "done", "loss", "forecast", "left"])
    assert lines[1].split() == ["mha_pro", "n_layer", "3", "interrupted", "50", "%", "2.2500", "1.8–2"]
    assert lines[-1] == "1 complete, 1 failed, 1 interrupted"
    assert max(map(len, lines)) <= 80


def test_rm_of_everything_by_accident(command: Command) -> None:
    code, _, err = command("rm")
    assert code == 2
    assert err.startswith("error: rm needs runs")


def test_unlock(command: Command, root: Path) -> None:
    folder = root / "one" / "mha_pro-enwik8-s1-cccccccc"
    (folder / LOCK_NAME).write_text("")
    code, out, _ = command("unlock", folder)
    assert (code, "is not locked" in out) == (0, True)
    assert not (folder / LOCK_NAME).exists()
    held = store.lock(folder)
    assert held is not None
    try:
        code, out, _ = command("unlock", folder)
        assert code == 1
        assert "is locked by a living process" in out
        assert is_locked(folder)
        code, _, _ = command("unlock", folder, "--force")
        assert code == 0
    finally:
        held.release()


def test_age_when_the_clock_went_back() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert listing.age("2027-01-01T00:00:00+00:00", now) == 0
    assert listing.age("2025-12-31T23:00:00+00:00", now) == 3600
    assert listing.age(None, now) is None
    assert [listing.shown_age(seconds) for seconds in (5, 300, 7200, 864000, None)] == [
        "5 s",
        "5 min",
        "2 h",
        "10 d",
        "-",
    ]


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
        ("list ROOT --sort age,run", ["--sort: age,run", "val_bpb"]),
        ("list ROOT --status complet", ["status=complet ", "'complete'", "interrupted"]),
        ("list ROOT --model rwkv_v9", ["model=rwkv_v9 ", "rwkv_v4"]),
        ("list ROOT seed=one", ["seed=one "]),
        ("rm ROOT/two/mha_pro-enwik8-s1-dddddddd", ["--yes"]),
        ("show", ["required: RUN"]),
        ("show nothing", ["there is no run nothing", "list"]),
        ("show .", ["there is no run ."]),
        ("show ROOT/one", ["one contains 3 runs", "one/mha_pro"]),
        ("diff ROOT/one/rwkv_v4-builtin-s1-aaaaaaaa", ["required: RUN"]),
        ("rm ROOT/two", ["two contains 1 runs"]),
        ("unlock", ["required: RUN"]),
    ],
)
def test_a_mistake_is_one_sentence(command: Command, root: Path, words: str, fragments: list[str]) -> None:
    code, out, err = command(*words.replace("ROOT", str(root)).split())
    assert code == 2 and (out == "" or "rm" in words)
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
    assert command("rm", damaged, "--yes")[0] == 0
    assert not damaged.exists()


PREDICTED = {
    "final_loss": 1.5,
    "interval": [1.4, 1.6],
    "level": 0.9,
    "column": "val_loss",
    "law": "auto",
    "best_run": "wsd lr 8e-3",
    "best_loss": 1.55,
    "best_steps": 489,
}


@pytest.mark.parametrize(("measured", "words"), [(1.52, ("inside", "beaten by 0.0300")), (1.7, ("outside", "0.1500"))])
def test_a_fitted_run_ends_with_what_was_predicted(measured: float, words: tuple[str, ...]) -> None:
    lines = prediction_lines({"predicted": PREDICTED, "result": RESULT | {"fixed_val_loss": measured}})
    assert words[0] in lines[0] and words[1] in lines[1]
    assert "wsd lr 8e-3, 489 updates" in lines[1]
    assert prediction_lines({"predicted": PREDICTED}) == []
    assert prediction_lines({"predicted": {"interval": [1]}, "result": RESULT}) == []


def test_list_shows_forecast_prediction_and_what_came_of_it(command: Command, root: Path) -> None:
    result = RESULT | {"fixed_val_loss": 1.7}
    make_run(root, "loop", "rwkv_v4-kjv-s1-eeeeeeee", "complete", result=result, predicted=PREDICTED)
    folder = make_run(root, "loop", "rwkv_v4-kjv-s2-ffffffff", "running")
    (folder / "forecast.json").write_text('{"loss": 1.9, "low": 1.8, "high": 2.0, "step": 30}')
    _, out, _ = command("list", root / "loop")
    header, done, running = (line.split() for line in out.splitlines())
    assert header[3:6] == ["forecast", "predicted", "measured"]
    assert done[3:7] == ["1.5000", "(1.400–1.600)", "1.7000", "outside"]
    assert running[3:5] == ["1.9000", "(1.800–2.000)"] or running[2:5] == ["-", "1.9000", "(1.800–2.000)"]
    (folder / "forecast.json").write_text("{")
    assert Run(folder).forecast == {}
