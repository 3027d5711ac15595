"""Servers that accept, refuse or say nothing: what is noted as uploaded is what was acknowledged."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkv_lab.cli import tracking as command
from rwkv_lab.runs import Run, load
from rwkv_lab.tracking import follower, log_in_background, uploads
from rwkv_lab.tracking.follower import upload
from rwkv_lab.tracking.sync import sync
from rwkv_lab.tracking.wandb import WandbConfig, refusal
from tests.in_process import make_here
from tests.plug_in import plugged_in
from tests.tracking.test_tracking import read_back, rows_of, run, with_tracker
from tests.tracking.wandb_server import wandb_server

__all__ = ["run"]


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def point_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    import wandb

    # wandb keeps the settings of the process's first run.
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", url)


def followed(run: Run, monkeypatch: pytest.MonkeyPatch, capsys) -> list[str]:
    """Follow a run that has ended, in this process and without a limit of time; return the lines for the run."""
    import wandb

    monkeypatch.setattr(follower, "FINISH_SECONDS", 500)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    try:
        follower.follow(run.path, 0)
    finally:
        signal.alarm(0)
        wandb.teardown()
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_rows_a_server_accepts_are_noted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wandb_server() as server:
        point_to(monkeypatch, server.url)
        assert sync(run, tmp_path, {}, 60) == (run, "uploaded", None)
        assert server.steps == [1, 2, 3, 4, 5]
        assert uploads.is_whole(run)
        uploads.write(run, 3)
        note = json.loads((run.path / uploads.NAME).read_text()) | {"status": "running"}
        (run.path / uploads.NAME).write_text(json.dumps(note))
        assert sync(run, tmp_path, {"project": "other"}, 60).outcome == "uploaded"
        assert server.steps[5:] == [4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
def test_rows_a_server_refuses_are_not_noted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with wandb_server(stream_status=status) as server:
        point_to(monkeypatch, server.url)
        done = sync(run, tmp_path, {}, 60)
    assert done.outcome == "failed" and str(status) in str(done.reason)
    assert not (run.path / uploads.NAME).exists()


@pytest.mark.slow
def test_a_run_whose_rows_are_refused_is_one_warning(run: Run, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with wandb_server(stream_status=403) as server:
        point_to(monkeypatch, server.url)
        run = with_tracker(run, name="wandb", mode="online", project="lab")
        (warning,) = followed(run, monkeypatch, capsys)
    assert "403" in warning and "tracking sync" in warning
    assert not (run.path / uploads.NAME).exists()


@pytest.mark.slow
def test_a_silent_server_is_one_warning_and_an_offline_file(
    run: Run, silent_server: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    point_to(monkeypatch, silent_server)
    run = with_tracker(run, name="wandb", mode="online", project="lab")
    (warning,) = followed(run, monkeypatch, capsys)
    assert "does not answer" in warning and "offline" in warning
    (records,) = read_back(run.path)
    assert [row["step"] for row in rows_of(records)] == [1, 2, 3, 4, 5]
    assert not (run.path / uploads.NAME).exists()


@pytest.mark.slow
def test_a_server_that_refuses_the_run_is_one_warning_and_an_offline_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with wandb_server(query_status=401) as server:
        point_to(monkeypatch, server.url)
        run = with_tracker(run, name="wandb", mode="online", project="lab")
        (warning,) = followed(run, monkeypatch, capsys)
    assert "could not start" in warning and "offline" in warning
    (records,) = read_back(run.path)
    assert [row["step"] for row in rows_of(records)] == [1, 2, 3, 4, 5]


def test_an_upload_that_cannot_open_gives_its_reason(
    run: Run, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rwkv_lab.tracking.wandb.ANSWER_SECONDS", 0.1)
    point_to(monkeypatch, silent_server)
    assert "does not answer" in str(upload(run.path, WandbConfig(mode="online", folder=str(run.path))))


SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_an_upload_that_takes_too_long_is_ended(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkv_lab.tracking.sync.command", lambda *_: SLEEPER)
    monkeypatch.setattr("rwkv_lab.tracking.sync.SHOW_SECONDS", 0.1)
    shown: list[float] = []
    done = sync(run, tmp_path, {}, 0.5, shown.append)
    assert done.outcome == "failed" and "0.5 s" in str(done.reason)
    assert shown


def test_ctrl_c_ends_a_sync_in_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def noted(*arguments: Any, **options: Any) -> subprocess.Popen:
        started.append(popen(*arguments, **options))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        return started[-1]

    monkeypatch.setattr("rwkv_lab.tracking.sync.command", lambda *_: SLEEPER)
    monkeypatch.setattr(subprocess, "Popen", noted)
    try:
        assert command.main(["sync", str(run.path.parent)]) == 130
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_refusal_is_read_from_the_internal_log(tmp_path: Path) -> None:
    log = tmp_path / "debug-internal.log"
    assert refusal(log) is None
    entries = [
        {"level": "INFO", "msg": "stream: starting"},
        {"level": "ERROR", "msg": "api: HTTP error", "status": 403},
        {"level": "ERROR+4", "msg": "filestream: fatal error: filestream: failed to upload: 403 Forbidden url=x: {}"},
    ]
    log.write_text("no JSON\n" + "".join(json.dumps(entry) + "\n" for entry in entries[:2]))
    assert refusal(log) is None
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert refusal(log) == "failed to upload: 403 Forbidden"


JSONL = '''
import json


@register("tracker", "jsonl")
@dataclass
class JsonlConfig(TrackerConfig):
    """One JSON object a row."""

    name: str = setting("jsonl", identity=False)
    file: str = setting("rows.jsonl", identity=False)  # in the run directory

    def open(self, run, after):
        return Jsonl(run.path / self.file)


class Jsonl:
    def __init__(self, path):
        self.out = open(path, "a")

    def log(self, row):
        self.out.write(json.dumps(row) + "\\n")

    def close(self, run):
        self.out.write(json.dumps({"status": run.status, "result": run.manifest["result"]}) + "\\n")
        self.out.close()
'''


@pytest.mark.slow
def test_a_tracker_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    here = make_here(tmp_path, monkeypatch)
    with plugged_in(tmp_path / "site", monkeypatch, JSONL):
        assert here.run("tracker=jsonl", "tracker.file=mine.jsonl") == 0
        assert "warning" not in capsys.readouterr().err
        run = load(here.folder())
        lines = [json.loads(line) for line in (run.path / "mine.jsonl").read_text().splitlines()]
        assert [row["step"] for row in lines[:-1]] == run.metrics()["step"].tolist()
        assert [row["lr"] for row in lines[:-1]] == run.metrics()["lr"].tolist()
        assert lines[-1] == {"status": "complete", "result": run.manifest["result"]}
        assert sync(run, tmp_path, {}, 1).outcome == "untracked"


@pytest.mark.slow
def test_tensorboard_read_back(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = with_tracker(run, name="tensorboard")
    with log_in_background(run.path, 0):
        pass
    read = EventAccumulator(str(run.path / "tensorboard"))
    read.Reload()
    columns = run.metrics()
    scalars = read.Scalars("train_loss")
    assert [scalar.step for scalar in scalars] == columns["step"].tolist()
    assert [scalar.value for scalar in scalars] == pytest.approx(columns["train_loss"].tolist())
    assert [scalar.value for scalar in read.Scalars("result/val_loss")] == [run.manifest["result"]["val_loss"]]
