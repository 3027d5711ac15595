"""wandb: what is logged, read back with wandb's own command line, and failures that cost the run nothing."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkv_lab.runs import Run, load
from rwkv_lab.tracking import following, sync, uploads, wandb
from rwkv_lab.tracking.config import TrackerConfig
from rwkv_lab.training.metrics import COLUMNS
from rwkv_lab.util.paths import write_json
from tests.lab import TINY, Lab

RESULT = {"val_loss": 1.25, "val_bpb": 2.5, "train_loss": 1.0, "tokens_per_second": 100.0, "eval": "windows"}


def add_rows(folder: Path, first: int, last: int) -> None:
    with open(folder / "metrics.csv", "a") as file:
        for step in range(first, last + 1):
            val = "2.5,3.5" if step % 2 == 0 else ","
            file.write(f"{step},{step * 10},0.001,{3 - step / 10},{val},1.0,{step / 10},100\n")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of five rows that is complete."""
    folder = tmp_path / "my study" / "rwkv_v4-builtin-s1-aaaaaaaa"
    folder.mkdir(parents=True)
    started = {"format": 1, "id": "aaaaaaaa", "started": "2026-01-01T00:00:00+00:00"}
    write_json(folder / "run.json", started | {"status": "complete", "result": RESULT})
    config = {
        "study": "my study",
        "seed": 1,
        "model": {"name": "rwkv_v4", "n_layer": 1},
        "data": {"name": "builtin"},
        "tracker": {"name": "wandb", "mode": "offline", "project": "lab", "entity": None, "tags": ["x" * 80]},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "metrics.csv").write_text(",".join(COLUMNS) + "\n")
    add_rows(folder, 1, 5)
    return load(folder)


def read_back(place: Path) -> list[list[dict[str, Any]]]:
    """The records of every wandb run below ``place``, through ``wandb leet inspect``."""
    found = []
    for file in sorted(place.glob("wandb/offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        found.append([json.loads(line) for line in done.stdout.splitlines()])
    return found


def rows_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for record in records:
        if record["type"] == "summary":
            merged |= record["summary"].get("update", {})
    return merged


@pytest.mark.slow
def test_offline_run_read_back(lab: Lab) -> None:
    done = lab.run("debug=smoke", *TINY, "tracker=wandb", "tracker.mode=offline", "tracker.tags=[mine]", "study=logged")
    assert "warning" not in done.stderr
    run = load(lab.only_run("logged"))
    (records,) = read_back(run.path)
    (begun,) = (record["run"] for record in records if record["type"] == "run")
    assert begun["run_id"] == f"logged-{run.manifest['id']}"
    assert begun["run_group"] == "logged"
    assert begun["display_name"] == run.name
    assert begun["job_type"] == "rwkv_v4"
    assert begun["tags"] == ["rwkv_v4", "builtin", "seed 1", "mine"]
    assert begun["config"]["update"]["model"]["n_embd"] == 16
    defined = [record["metric"] for record in records if record["type"] == "metric"]
    assert {metric.get("name") for metric in defined} >= {"step", "tokens", "seconds", "flops"}
    assert any(metric.get("step_metric") == "tokens" for metric in defined)
    columns = run.metrics()
    rows = rows_of(records)
    assert [row["step"] for row in rows] == columns["step"].tolist()
    assert [row["_step"] for row in rows] == columns["step"].tolist()
    for name in ("tokens", "lr", "train_loss", "grad_norm"):
        assert [row[name] for row in rows] == columns[name].tolist()
    assert [row["flops"] for row in rows] == (columns["tokens"] * run.manifest["flops_per_token"]).tolist()
    assert begun["config"]["update"]["data"]["name"] == "builtin"
    assert begun["config"]["update"]["model"]["name"] == "rwkv_v4"
    assert summary_of(records)["val_bpb"] == run.manifest["result"]["val_bpb"]
    for cost in ("parameters", "flops_per_token", "peak_memory_bytes"):
        assert summary_of(records)[cost] == run.manifest[cost]
    assert records[-1]["exit"].get("exit_code", 0) == 0


@pytest.mark.slow
def test_a_run_of_a_sweep_agent_belongs_to_its_sweep(lab: Lab, tmp_path: Path) -> None:
    """Under the environment W&B's agent gives its jobs."""
    chosen = tmp_path / "config-xyz12345.yaml"
    chosen.write_text("wandb_version: 1\nmodel:\n  value: rwkv_v4\nschedule.lr_init:\n  value: 0.001\n")
    agent = {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "xyz12345", "WANDB_SWEEP_PARAM_PATH": str(chosen)}
    overrides = (
        "model=rwkv_v4",
        "schedule.lr_init=0.001",
        "study=under_agent",
        "tracker=wandb",
        "tracker.mode=offline",
    )
    lab.run("debug=smoke", *TINY, *overrides, env=lab.environment | agent)
    run = load(lab.only_run("under_agent"))
    (records,) = read_back(run.path)
    (begun,) = (record["run"] for record in records if record["type"] == "run")
    assert (begun["sweep_id"], begun["run_id"]) == ("abc", "xyz12345")
    assert (begun["run_group"], begun["job_type"], begun["display_name"]) == ("under_agent", "rwkv_v4", run.name)
    config = begun["config"]["update"]
    assert config["schedule.lr_init"] == config["schedule"]["lr_init"] == 0.001
    assert config["model"] == "rwkv_v4", "the swept value stands in place of the section, as docs/comparing.md says"
    assert summary_of(records)["val_bpb"] == run.manifest["result"]["val_bpb"]


@pytest.mark.slow
def test_replay_of_a_run_and_what_is_left_of_it(run: Run, tmp_path: Path) -> None:
    assert sync.sync(run, tmp_path / "all", mode="offline").outcome == "uploaded"
    (records,) = read_back(tmp_path / "all")
    assert [row["step"] for row in rows_of(records)] == [1, 2, 3, 4, 5]
    assert "val_loss" not in rows_of(records)[0]
    assert summary_of(records)["val_loss"] == RESULT["val_loss"]
    # As after an upload of the first three rows.
    uploads.write(run, 3)
    write_json(run.path / uploads.NAME, json.loads((run.path / uploads.NAME).read_text()) | {"status": "running"})
    assert sync.sync(run, tmp_path / "rest", mode="offline").outcome == "uploaded"
    (records,) = read_back(tmp_path / "rest")
    assert [row["step"] for row in rows_of(records)] == [4, 5]


def test_what_is_uploaded_is_known(run: Run) -> None:
    assert not uploads.is_whole(run)
    uploads.write(run, 5)
    assert uploads.is_whole(run)
    assert sync.sync(run, run.path).outcome == "whole"
    add_rows(run.path, 6, 6)
    assert not uploads.is_whole(run)
    uploads.write(run, 6)
    write_json(run.path / "run.json", run.manifest | {"started": "2026-02-02T00:00:00+00:00"})
    assert not uploads.is_whole(load(run.path)), "a run begun afresh has uploaded nothing"
    (run.path / uploads.NAME).write_text('{"step": ')
    assert uploads.read(load(run.path)) == uploads.Uploaded()


def test_what_wandb_complains_of_is_one_line() -> None:
    pydantic = "1 validation error for Settings\nbase_url\n  Value error, no URL [type=value_error]\n    For further"
    assert wandb.reason(ValueError(pydantic)) == "base_url: Value error, no URL"
    assert wandb.reason(ValueError("\nno key.\nlog in")) == "no key"
    assert wandb.reason(TimeoutError()) == "TimeoutError"
    assert wandb.reason(PermissionError(13, "Permission denied", "/x")) == "Permission denied: /x"


def test_a_run_that_cannot_be_read_does_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    (run.path / "run.json").write_text("{")
    done = sync.sync(Run(run.path), tmp_path)
    assert done.outcome == "unreadable"
    assert "no readable manifest" in str(done.reason)


def test_rows_behind_a_step(run: Run) -> None:
    assert [row["step"] for row in wandb.rows_after(run, 3)] == [4, 5]
    with open(run.path / "metrics.csv", "a") as file:
        file.write("6,60,0.0")
    assert [row["step"] for row in wandb.rows_after(run, 4)] == [5]


@pytest.mark.parametrize("settings", [TrackerConfig(name="none"), TrackerConfig(mode="disabled")])
def test_no_tracker_starts_no_process(settings: TrackerConfig, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with following(settings, run.path, 0):
        pass
    assert not (run.path / "wandb").exists()


def test_tracker_that_cannot_start_is_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with following(TrackerConfig(), run.path, 0):
        pass
    assert capsys.readouterr().err.startswith("warning: the tracker could not be started (Resource temporarily")


@pytest.mark.slow
def test_folder_that_cannot_be_written_is_a_warning(run: Run, capsys) -> None:
    with following(TrackerConfig(folder="/proc/nowhere"), run.path, 0):
        pass
    said = capsys.readouterr().err
    assert said.startswith("warning: wandb ")
    assert "metrics.csv has everything" in said or "nothing is lost" in said


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.slow
def test_online_with_a_false_key_and_a_silent_server_ends_normally(lab: Lab, silent_server: str) -> None:
    environment = lab.environment | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": silent_server}
    overrides = ("debug=smoke", *TINY, "tracker=wandb", "tracker.mode=online", "study=unreachable")
    done = lab.run(*overrides, env=environment)
    assert "warning: wandb " in done.stderr
    assert "Traceback" not in done.stderr
    assert load(lab.only_run("unreachable")).status == "complete"
    assert not uploads.is_whole(load(lab.only_run("unreachable")))
