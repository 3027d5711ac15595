"""wandb: what is logged, read back with wandb's own command line, and failures that cost the run nothing."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, listing, load
from rwkv_lab.runs.manifest import write_manifest
from rwkv_lab.tracking import log_in_background, uploads
from rwkv_lab.tracking.follower import send_rest
from rwkv_lab.tracking.sync import sync
from rwkv_lab.tracking.tracker import Replay, reason
from rwkv_lab.tracking.wandb import WandbConfig
from rwkv_lab.training.metrics import FIRST
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
    write_manifest(folder, started | {"status": "complete", "result": RESULT})
    config = {
        "study": "my study",
        "seed": 1,
        "model": {"name": "rwkv_v4", "n_layer": 1},
        "data": {"name": "builtin"},
        "tracker": {"name": "wandb", "mode": "offline", "project": "lab", "entity": None, "tags": ["x" * 64]},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "metrics.csv").write_text(",".join(FIRST) + "\n")
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
    assert begun["display_name"] == listing.name_of(run)
    assert begun["job_type"] == "rwkv_v4"
    assert begun["tags"] == ["rwkv_v4", "kjv", "seed 1", "mine"]
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
    assert begun["config"]["update"]["data"]["name"] == "kjv"
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
    assert (begun["run_group"], begun["job_type"]) == ("under_agent", "rwkv_v4")
    assert begun["display_name"] == listing.name_of(run)
    config = begun["config"]["update"]
    assert config["schedule.lr_init"] == config["schedule"]["lr_init"] == 0.001
    assert config["model"] == "rwkv_v4", "the swept value stands in place of the section, as docs/comparing.md says"
    assert summary_of(records)["val_bpb"] == run.manifest["result"]["val_bpb"]


@pytest.mark.slow
def test_replay_of_a_run_and_what_is_left_of_it(run: Run, tmp_path: Path) -> None:
    settings = WandbConfig(project="lab", folder=str(tmp_path / "all"))
    tracker = settings.open(run, 0)
    send_rest(run, Replay(run, tracker, 0), tracker, settings)
    (records,) = read_back(tmp_path / "all")
    assert [row["step"] for row in rows_of(records)] == [1, 2, 3, 4, 5]
    assert "val_loss" not in rows_of(records)[0]
    assert summary_of(records)["val_loss"] == RESULT["val_loss"]
    assert not uploads.is_whole(run), "offline, no server has acknowledged anything"


def observed(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "grad_norm": {"emb": step / 10, "blocks.0": 1.0},
        "half_life": {"blocks.0": {"edges": [0, 1, 2], "counts": [3, step]}},
        "sample": {"prompt": "a", "text": f"text of {step}", "val_bpb": 3.5},
    }


@pytest.mark.slow
def test_what_a_run_observed_and_where_it_came_from(run: Run, tmp_path: Path) -> None:
    lines = "".join(json.dumps(observed(step)) + "\n" for step in (2, 4))
    (run.path / "observations.jsonl").write_text(lines + '{"step": 5, "torn')
    for name in ("model.safetensors", "tokenizer.json"):
        (run.path / name).write_text(name)
    facts = {
        "git": {"commit": "abc", "dirty": "def"},
        "overrides": ["seed=1", "study=my study"],
        "flops_per_token": 100.0,
        "tokens": 50,
        "forecast": {"loss": 1.3, "low": 1.2, "high": 1.4, "step": 3},
        "evals": {"piqa": {"acc": 0.5, "samples": 8}},
    }
    write_manifest(run.path, run.manifest | facts)
    run = load(run.path)
    settings = WandbConfig(project="lab", folder=str(tmp_path / "all"), artifact=True)
    tracker = settings.open(run, 2)
    send_rest(run, Replay(run, tracker, 2), tracker, settings)
    (records,) = read_back(tmp_path / "all")
    by_step = {row["step"]: row for row in rows_of(records)}
    assert sorted(by_step) == [3, 4, 5]
    assert (by_step[4]["grad_norm/emb"], by_step[4]["grad_norm/blocks.0"]) == (0.4, 1.0)
    assert by_step[4]["log2_half_life/blocks.0.values"] == [3, 4]
    assert by_step[4]["samples.nrows"] == 2, "the table begins with what an earlier session wrote"
    table = json.loads(next((tmp_path / "all").rglob("samples_4_*.table.json")).read_text())
    assert table["columns"] == ["step", "prompt", "text", "val_bpb"]
    assert table["data"] == [[step, "a", f"text of {step}", 3.5] for step in (2, 4)]
    assert by_step[5]["forecast_loss"] == 1.3 and "forecast_loss" not in by_step[4]
    summary = summary_of(records)
    assert (summary["commit"], summary["dirty"], summary["flops"]) == ("abc", True, 5000)
    assert summary["command"] == "python run.py seed=1 'study=my study'" and summary["overrides"] == facts["overrides"]
    assert (summary["forecast_low"], summary["tasks/piqa/acc"]) == (1.2, 0.5)
    kept = [record["artifact"] for record in records if record["type"] == "artifact"]
    (model,) = (artifact for artifact in kept if artifact["type"] == "model")
    files = {entry["path"] for entry in model["manifest"]["contents"]}
    assert files == {"model.safetensors", "tokenizer.json", "config.yaml", "run.json"}
    assert all(str(tmp_path) in entry["local_path"] for entry in model["manifest"]["contents"])


def test_what_is_uploaded_is_known(run: Run, tmp_path: Path) -> None:
    assert not uploads.is_whole(run)
    uploads.write(run, 5)
    assert uploads.is_whole(run)
    assert sync(run, tmp_path, {}, 1).outcome == "whole"
    add_rows(run.path, 6, 6)
    assert not uploads.is_whole(run)
    uploads.write(run, 6)
    write_manifest(run.path, run.manifest | {"started": "2026-02-02T00:00:00+00:00"})
    assert not uploads.is_whole(load(run.path)), "a run begun afresh has uploaded nothing"
    for damage in ('{"step": ', "[]", '{"step": "x"}', "[" * 100_000):
        (run.path / uploads.NAME).write_text(damage)
        assert uploads.read(load(run.path)) == uploads.Uploaded()


def test_what_a_tracker_complains_of_is_one_line() -> None:
    pydantic = "1 validation error for Settings\nbase_url\n  Value error, no URL [type=value_error]\n    For further"
    assert reason(ValueError(pydantic)) == "base_url: Value error, no URL"
    assert reason(ValueError("\nno key.\nlog in")) == "no key"
    assert reason(TimeoutError()) == "TimeoutError"
    assert reason(PermissionError(13, "Permission denied", "/x")) == "Permission denied: /x"


def test_a_run_that_cannot_be_read_does_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    (run.path / "run.json").write_text("{")
    done = sync(Run(run.path), tmp_path, {}, 1)
    assert done.outcome == "unreadable"
    assert "run.json" in str(done.reason)


class Noted:
    """A tracker that keeps what it is sent."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))

    def observe(self, line: Mapping[str, Any]) -> None:
        self.rows.append({"observed": line["step"]})

    def close(self, run: Run) -> None: ...


def test_rows_behind_a_step_are_sent_once(run: Run) -> None:
    noted = Noted()
    replay = Replay(run, noted, 3)
    replay.send()
    assert [row["step"] for row in noted.rows] == [4, 5]
    with open(run.path / "metrics.csv", "a") as file:
        file.write("6,60,0.0")
    replay.send()
    assert replay.last == 5
    add_rows_text = "01,2,,,1,1,1\n"
    with open(run.path / "metrics.csv", "a") as file:
        file.write(add_rows_text)
    replay.send()
    assert [row["step"] for row in noted.rows] == [4, 5, 6]


def with_tracker(run: Run, **tracker: Any) -> Run:
    config = {key: value for key, value in run.config.items() if key != "tracker"}
    (run.path / "config.yaml").write_text(json.dumps(config | {"tracker": tracker}))
    return Run(run.path)


OFF = [{"name": "none"}, {"name": "wandb", "mode": "disabled"}, {"name": "none", "mode": "online", "project": "old"}]


@pytest.mark.parametrize("tracker", OFF)
def test_no_tracker_starts_no_process(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    run = with_tracker(run, **tracker)
    with log_in_background(run.path, 0):
        pass
    assert not (run.path / "wandb").exists()
    assert sync(run, tmp_path, {}, 1).outcome == "untracked"


def test_tracker_that_cannot_start_is_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with log_in_background(run.path, 0):
        pass
    assert "Resource temporarily unavailable" in capsys.readouterr().err


@pytest.mark.slow
def test_folder_that_cannot_be_written_is_a_warning(run: Run, capsys) -> None:
    run = with_tracker(run, name="wandb", folder="/proc/nowhere")
    with log_in_background(run.path, 0):
        pass
    warning = capsys.readouterr().err
    assert warning.startswith("warning: wandb ") and warning.count("\n") == 1


@pytest.mark.parametrize("tag", ["", "x" * 65, "two\nlines"])
def test_tags_are_checked_before_training(tag: str) -> None:
    with pytest.raises(UserError, match=r"tracker\.tags"):
        WandbConfig(tags=["good", tag]).check()


@pytest.mark.parametrize("project", ["", "a/b", "x" * 129])
def test_projects_are_checked_before_training(project: str) -> None:
    with pytest.raises(UserError, match=r"tracker\.project"):
        WandbConfig(project=project).check()


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


@pytest.mark.slow
def test_a_comparison_is_a_run_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "compare"
    folder.mkdir()
    (folder / "groups.csv").write_text("group,val_bpb\na,1.5\nb,\n")
    (folder / "compare.html").write_text("<p>page</p>")
    WandbConfig(project="lab").publish(folder, "my study")
    (records,) = read_back(folder)
    (begun,) = (record["run"] for record in records if record["type"] == "run")
    assert (begun["run_group"], begun["job_type"], begun["project"]) == ("my study", "compare", "lab")
    (row,) = rows_of(records)
    assert row["page._type"] == "html-file"
    table = json.loads(next(folder.rglob("groups_*.table.json")).read_text())
    assert table["columns"] == ["group", "val_bpb"] and table["data"] == [["a", 1.5], ["b", None]]
