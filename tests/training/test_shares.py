"""trainer=fsdp by gloo processes: the numbers of one process, and a run that goes on with other numbers of them."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.run_hash import identity
from rwkv_lab.runs import read_metrics
from tests.composing import checked, hydra_context
from tests.in_process import STEPS, Here, Killed, make_here

WORDS = ("trainer=fsdp", "trainer.batch_size=4", "model.n_layer=2", "trainer.timeout=60")
TOLERANCE = 1e-5  # sums over shares of the batch are rounded differently
KILLED = 9


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return make_here(tmp_path, monkeypatch)


def rank(number: int, ranks: int, port: int, folder: Path, words: tuple[str, ...], kill_at: int | None) -> None:
    """One rank of a run, from its overrides to its end; ``kill_at`` ends it before that update."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": str(ranks),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    with pytest.MonkeyPatch.context() as patch:
        here = make_here(folder, patch)

        def fault() -> None:
            raise Killed

        if kill_at is not None:
            here.at_step(kill_at, fault)
        try:
            code = here.run(*words)
        except Killed:
            os._exit(KILLED)
        os._exit(code)


def run(ranks: int, folder: Path, *words: str, kill_at: int | None = None) -> list[int]:
    """Return the exit code of each rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "rwkv_lab.training.session", "tests.in_process"])
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    processes = [
        context.Process(target=rank, args=(number, ranks, port, folder, words, kill_at)) for number in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def only_run(folder: Path) -> Path:
    (manifest,) = folder.glob("runs/*/*/run.json")
    return manifest.parent


@pytest.mark.slow
def test_shares_train_as_one_process_and_go_on_with_any_number(here: Here, tmp_path: Path) -> None:
    """Two processes equal one; two, killed, then one, killed, then four equal them as well."""
    assert here.run("trainer.batch_size=4", "model.n_layer=2") == 0
    folders = {name: tmp_path / name for name in ("two", "others")}
    for folder in folders.values():
        folder.mkdir()
    assert run(2, folders["two"], *WORDS) == [0, 0]
    assert run(2, folders["others"], *WORDS, kill_at=5) == [KILLED, KILLED]
    assert run(1, folders["others"], *WORDS, kill_at=9) == [KILLED]
    assert run(4, folders["others"], *WORDS) == [0, 0, 0, 0]
    expected = read_metrics(here.folder() / "metrics.csv")
    for folder in folders.values():
        path = only_run(folder)
        found = read_metrics(path / "metrics.csv")
        for column in ("step", "tokens", "lr", "train_loss", "grad_norm", "val_loss"):
            np.testing.assert_allclose(found[column], expected[column], rtol=TOLERANCE, err_msg=column)
        manifest = json.loads((path / "run.json").read_text())
        assert manifest["status"] == "complete"
        assert manifest["result"]["val_loss"] == pytest.approx(here.loaded().manifest["result"]["val_loss"], rel=1e-5)
        assert len(list(path.glob("checkpoints/*.shares"))) == len(list(path.glob("checkpoints/*.json"))) == 2
        assert (path / f"checkpoints/step-{STEPS:09d}.json").exists()
        size = (here.folder() / "model.safetensors").stat().st_size
        assert (path / "model.safetensors").stat().st_size == size


def test_the_number_of_processes_is_no_part_of_a_run_in_shares() -> None:
    with hydra_context():
        ids = {identity(checked("trainer=fsdp", f"trainer.processes={n}"), {}) for n in (2, 4)}
        copies = {identity(checked("trainer=ddp", f"trainer.processes={n}"), {}) for n in (2, 4)}
    assert (len(ids), len(copies)) == (1, 2)


@pytest.mark.parametrize("word", ["trainer.cpu_offload=true", "trainer.gather=bf16"])
def test_what_only_shares_have(word: str) -> None:
    with hydra_context():
        checked("trainer=fsdp", word)
        with pytest.raises(UserError, match=word.partition("=")[0]):
            checked("trainer=ddp", word)
