"""Faults of files and machines: nothing is lost, one sentence each, and the run ends with the same numbers."""

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import load, provenance
from rwkv_lab.runs.manifest import write_manifest
from rwkv_lab.training import checkpoint, trainer
from rwkv_lab.util.io import write_json
from tests.in_process import STEPS, Here, Killed, make_here, numbers


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return make_here(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The numbers of a run nothing happened to."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        here = make_here(tmp_path_factory.mktemp("undisturbed"), monkeypatch)
        assert here.run() == 0
        yield numbers(here.folder())


def records(here: Here) -> list[Path]:
    return sorted((here.folder() / "checkpoints").glob("step-*.json"))


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGINT, 0), (signal.SIGTERM, 5), (signal.SIGHUP, 6), (signal.SIGINT, STEPS - 1)]
)
def test_stop_and_go_on(here: Here, undisturbed: dict, capsys, number: signal.Signals, step: int) -> None:
    with here.monkeypatch.context() as patch:
        here.at_step(step, lambda: os.kill(os.getpid(), number), patch)
        assert here.run() == 130
    assert f"stopped at step {step + 1}; the checkpoint is saved: the same command again" in capsys.readouterr().out
    assert here.loaded().status == "interrupted"
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed


@pytest.mark.parametrize("step", [1, 8])
def test_killed_between_two_checkpoints(here: Here, undisturbed: dict, step: int) -> None:
    here.kill_at(step)
    assert here.loaded().status == "interrupted"
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed


@pytest.mark.parametrize("function", ["write_tensors", "write_json"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_while_a_checkpoint_is_written(here: Here, undisturbed: dict, function: str, after: bool) -> None:
    write = getattr(checkpoint, function)

    def killed(*arguments: Any) -> None:
        if here.loaded().path.joinpath("checkpoints", "step-000000004.json").exists():
            if after:
                write(*arguments)
            raise Killed
        write(*arguments)

    with here.monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, killed)
        with pytest.raises(Killed):
            here.run()
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed
    assert not [path for path in here.folder().rglob("*") if path.name.startswith(".tmp") or "partial" in path.name]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": truncate, "flipped": flip_bit, "missing": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_damaged_checkpoint(here: Here, undisturbed: dict, capsys, damage: str, suffix: str) -> None:
    here.kill_at(9)
    newest = records(here)[-1]
    DAMAGES[damage](newest.with_suffix(suffix))
    assert here.run() == 0
    said = capsys.readouterr()
    assert "resuming from step 6" in said.out
    if newest.exists() or suffix == ".safetensors":
        assert "warning: checkpoint step-000000008 is damaged" in said.err
    assert numbers(here.folder()) == undisturbed


def test_no_checkpoint_is_whole(here: Here, undisturbed: dict, capsys) -> None:
    here.kill_at(9)
    for record in records(here):
        flip_bit(record.with_suffix(".safetensors"))
    assert here.run() == 0
    assert "no checkpoint is whole: the run begins again at step 0" in capsys.readouterr().err
    assert numbers(here.folder()) == undisturbed


def test_torn_and_surplus_rows(here: Here, undisturbed: dict) -> None:
    here.kill_at(9)
    file = here.folder() / "metrics.csv"
    assert file.read_text().splitlines()[-1].startswith("9,")
    with open(file, "a") as rows:
        rows.write("10,320,0.00")
    assert len(load(here.folder()).metrics()["step"]) == 9
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed


def test_lost_rows_are_said(here: Here, capsys) -> None:
    here.kill_at(9)
    (here.folder() / "metrics.csv").unlink()
    assert here.run() == 0
    assert "metrics.csv has no rows up to step 8: they are lost, the weights are not" in capsys.readouterr().err


def test_damaged_tokenizer(here: Here, undisturbed: dict, capsys) -> None:
    here.kill_at(9)
    truncate(here.folder() / "tokenizer.json")
    assert here.run() == 0
    assert "tokenizer.json is damaged; the tokenizer is made from the data again" in capsys.readouterr().err
    assert numbers(here.folder()) == undisturbed


def test_damaged_manifest_is_said_and_rerun_works(here: Here) -> None:
    here.kill_at(3)
    truncate(here.folder() / "run.json")
    with pytest.raises(UserError, match=r"run.json is not a readable manifest .*rerun=true"):
        here.run()
    assert here.run("rerun=true") == 0


def test_file_size_limit_stops_the_run_and_loses_nothing(here: Here, undisturbed: dict, capsys) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with here.monkeypatch.context() as patch:
        here.at_step(7, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1])), patch)
        try:
            assert here.run() == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "failed: File too large" in capsys.readouterr().err
    assert here.loaded().status == "failed"
    assert here.loaded().manifest["reason"].startswith("File too large")
    assert records(here)[-1].stem == "step-000000006"
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed


def test_not_even_the_failure_can_be_written(here: Here, undisturbed: dict, capsys) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with here.monkeypatch.context() as patch:
        here.at_step(7, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1])), patch)
        try:
            assert here.run() == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the failure could not be recorded" in capsys.readouterr().err
    assert here.loaded().status == "interrupted"
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed


def test_text_vanished_and_came_back(here: Here, undisturbed: dict) -> None:
    here.kill_at(5)
    away = here.text.rename(here.text.with_suffix(".away"))
    with pytest.raises(UserError, match=r"data\.path=.*text\.txt does not exist"):
        here.run()
    away.rename(here.text)
    assert here.loaded().status == "interrupted"
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed


def test_changed_text_is_another_run(here: Here) -> None:
    here.kill_at(5)
    old = here.folder()
    here.text.write_text(here.text.read_text().replace("plus", "+"))
    assert here.run() == 0
    assert here.folder() != old
    assert load(old).status == "interrupted"
    assert load(here.folder()).status == "complete"


def test_rerun_killed_while_it_empties_the_folder_is_no_complete_run(here: Here) -> None:
    assert here.run() == 0
    with here.monkeypatch.context() as patch:

        def killed(*arguments: Any) -> None:
            raise Killed

        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(Killed):
            here.run("rerun=true")
    assert not (here.folder() / "run.json").exists()
    assert here.run() == 0
    assert here.loaded().status == "complete"


def test_lock_and_manifest_of_a_dead_process(here: Here, undisturbed: dict) -> None:
    here.kill_at(5)
    (here.folder() / ".lock").write_text("999999")
    write_manifest(here.folder(), here.loaded().manifest | {"pid": 999999})
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed


def test_clock_going_backwards(here: Here, undisturbed: dict) -> None:
    years = iter(range(2040, 1990, -1))
    here.monkeypatch.setattr(provenance, "now", lambda: f"{next(years)}-01-01T00:00:00+00:00")
    here.kill_at(5)
    assert here.run() == 0
    run = here.loaded()
    assert run.manifest["ended"] < run.manifest["started"]
    assert run.manifest["seconds"] > 0
    assert (run.metrics()["tokens_per_second"] > 0).all()
    assert numbers(here.folder()) == undisturbed


def not_finite(which: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """An update whose loss (0) or gradient norm (1) is NaN."""
    update = trainer.update

    def broken(training: Any, module: Any, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        measured = list(update(training, module, step))
        if step == 6:
            measured[which] = torch.tensor(float("nan"))
        return measured[0], measured[1]

    return broken


@pytest.mark.parametrize(("which", "what"), [(0, "the loss"), (1, "the gradient norm")])
def test_not_finite_fails_and_goes_on_when_cured(here: Here, undisturbed: dict, capsys, which: int, what: str) -> None:
    with here.monkeypatch.context() as patch:
        patch.setattr(trainer, "update", not_finite(which))
        assert here.run() == 1
    said = capsys.readouterr().err
    assert said.startswith(f"failed: {what} became nan at step 7")
    assert said.count("\n") == 1
    assert here.loaded().status == "failed"
    assert here.loaded().manifest["reason"].startswith(f"{what} became nan at step 7 with lr")
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed


def test_weights_that_are_not_finite(here: Here, tmp_path: Path) -> None:
    assert here.run(study="source") == 0
    source = here.folder("source") / "model.safetensors"
    tensors = load_file(source)
    next(iter(tensors.values())).fill_(float("nan"))
    with safe_open(source, "pt") as opened:
        save_file(tensors, tmp_path / "nan.safetensors", metadata=opened.metadata())
    with pytest.raises(UserError, match=r"nan\.safetensors has NaN"):
        here.run(f"model.init_from={tmp_path / 'nan.safetensors'}")
    assert not here.folder().exists()


def test_weights_that_end_not_finite(here: Here, capsys) -> None:
    def spoil() -> None:
        step = torch.optim.Adam.step

        def spoiled(optimizer: Any, *arguments: Any) -> None:
            step(optimizer, *arguments)
            with torch.no_grad():
                optimizer.param_groups[-1]["params"][0].fill_(float("nan"))

        here.monkeypatch.setattr(torch.optim.Adam, "step", spoiled)

    here.at_step(STEPS - 1, spoil)
    assert here.run() == 1
    assert "the largest weight became nan" in capsys.readouterr().err
    assert here.loaded().status == "failed"
    assert not list((here.folder() / "checkpoints").glob(f"step-{STEPS:09d}*"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory(here: Here, undisturbed: dict, capsys, error: Exception) -> None:
    def fault() -> None:
        raise error

    with here.monkeypatch.context() as patch:
        here.at_step(5, fault, patch)
        assert here.run() == 1
    assert capsys.readouterr().err.startswith("failed: out of memory: lower trainer.batch_size")
    assert here.loaded().status == "failed"
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed


def test_checkpoint_of_a_newer_version(here: Here, undisturbed: dict) -> None:
    here.kill_at(5)
    newest = records(here)[-1]
    before = newest.read_text()
    record = json.loads(before) | {"format": checkpoint.FORMAT_OF_SHARES + 1}
    del record["record_sha256"]
    write_json(newest, record | {"record_sha256": checkpoint._record_hash(record)})
    with pytest.raises(UserError, match="was written by a newer version of rwkv_lab"):
        here.run()
    assert here.loaded().status == "interrupted"
    newest.write_text(before)
    assert here.run() == 0
    assert numbers(here.folder()) == undisturbed


def test_run_of_a_newer_version(here: Here) -> None:
    here.kill_at(5)
    write_manifest(here.folder(), here.loaded().manifest | {"format": 99})
    with pytest.raises(UserError, match=r"was written by a newer version of rwkv_lab \(format 99\)"):
        here.run()
