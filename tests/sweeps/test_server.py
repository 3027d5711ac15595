"""Jobs forked from a server end as jobs in fresh processes do, and leave nothing to each other."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rwkv_lab.config.hydra import prepare
from rwkv_lab.sweeps.server import ForkServer, ServerGone
from rwkv_lab.util.paths import CONF


@pytest.fixture(scope="module")
def forks():
    server = ForkServer({name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"})
    yield server
    assert len(list(Path(f"/proc/{server.pid}/task").iterdir())) == 1  # so that forking is safe
    server.close()


def config(*words):
    """The configuration of ``words`` as a launcher's worker has it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        prepare()
        return OmegaConf.to_container(compose("config", list(words)), resolve=False)


def test_exit_code_and_last_line(forks, capfd):
    for _ in range(2):
        ended = forks.run(config("trainer.steps=0"), ["trainer.steps=0"], os.environ, quiet=True)
        assert ended.code == 2
        assert "trainer.steps" in ended.reason
    out, error = capfd.readouterr()
    assert not out
    assert "trainer.steps" in error


def test_environment_and_folder_are_the_callers(forks, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    job = config("dry_run=true", "runs_dir=${oc.env:PLACE}", "tracker=none")
    for name in ("first", "second"):
        forks.run(job, [], {**os.environ, "PLACE": str(tmp_path / name)}, quiet=False)
        assert name in capfd.readouterr().out
    ended = forks.run(job, [], {name: value for name, value in os.environ.items() if name != "PLACE"}, quiet=True)
    assert ended.code == 2
    assert "PLACE" in ended.reason


def test_a_job_that_is_asked_to_stop(forks, tmp_path):
    """The request goes on to the job, which saves its checkpoint."""
    words = [
        "data=builtin",
        "model.n_layer=1",
        "model.n_embd=8",
        "trainer.steps=1000000",
        "trainer.log_every=1",
        "tracker=none",
        f"runs_dir={tmp_path}",
    ]
    before = signal.getsignal(signal.SIGINT)

    def ask():
        while not [path for path in tmp_path.rglob("metrics.csv") if len(path.read_text().splitlines()) > 1]:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=ask, daemon=True).start()
    ended = forks.run(config(*words), words, os.environ, quiet=True)
    assert ended.stopped
    assert ended.code == 130
    assert list(tmp_path.rglob("step-*.json"))
    assert signal.getsignal(signal.SIGINT) == before


def test_a_server_that_is_gone():
    server = ForkServer(os.environ)
    server._process.kill()
    with pytest.raises(ServerGone):
        server.run(config(), [], os.environ, quiet=True)
    server.close()
