"""A result, once recorded, stays; and what it rests on is verified when it is opened."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkv_lab.cli import generate
from rwkv_lab.config.errors import UserError
from rwkv_lab.inference import sampling
from rwkv_lab.runs.manifest import read_manifest, verify, write_manifest
from rwkv_lab.training import session
from rwkv_lab.training.evaluate import evaluate_run
from rwkv_lab.util.console import harmless, say
from tests.in_process import Here, make_here, numbers


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return make_here(tmp_path, monkeypatch)


def test_a_sample_that_fails_is_one_warning(here: Here, capsys) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no words\nat all")

    here.monkeypatch.setattr(sampling, "generate", broken)
    assert here.run() == 0
    assert here.loaded().status == "complete"
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and "the sample" in warnings[0]


def test_a_summary_that_fails_is_one_warning(here: Here, capsys) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ValueError("cannot be shown")

    here.monkeypatch.setattr("rwkv_lab.cli.summary.complete", broken)
    assert here.run() == 0
    assert here.loaded().status == "complete"
    assert "cannot be shown" in capsys.readouterr().err


def test_token_ids_without_text_complete(here: Here, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", (np.arange(4000) * 7 % 13).astype(np.uint16))
    words = ("data=npy", f"data.path={tmp_path / 'ids.npy'}", "tokenizer=ids")
    assert here.run(*words) == 0
    assert all(word.isdigit() for word in (here.folder() / "sample.txt").read_text().split())


def test_a_terminal_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n")
    assert raw.getvalue() == b"gr?n\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a\tb\n"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("over\rwritten", r"over\rwritten"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202etxt", r"\u202etxt"),
        ("na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{SNOWMAN}", "na\xefve \N{SNOWMAN}"),
    ],
)
def test_what_steers_a_terminal_is_shown_harmlessly(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_a_loss_above_a_uniform_model_is_noted(here: Here, capsys) -> None:
    assert here.run("schedule=constant", "schedule.lr_init=3", "trainer.clip=0") == 0
    (note,) = here.loaded().manifest["notes"]
    assert note in capsys.readouterr().out
    assert here.run("trainer.steps=60") == 0
    assert here.loaded().manifest["notes"] == []


def test_out_of_memory_names_what_is_large(here: Here, capsys) -> None:
    def fault() -> None:
        raise MemoryError

    here.at_step(2, fault)
    assert here.run() == 1
    said = capsys.readouterr().err
    for part in ("trainer.batch_size", "trainer.accumulate", "weights", "gradients", "optimizer"):
        assert part in said


def change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.yaml"])
def test_a_changed_file_of_a_complete_run_is_refused(here: Here, name: str) -> None:
    assert here.run() == 0
    path = here.folder()
    assert evaluate_run(str(path), "val", "cpu").loss == here.loaded().manifest["result"]["val_loss"]
    change(path / name)
    with pytest.raises(UserError, match=name):
        evaluate_run(str(path), "val", "cpu")
    if name != "config.yaml":
        with pytest.raises(UserError, match=name):
            generate.main([str(path), "1", "--length", "2"])
    if name == "model.safetensors":
        with pytest.raises(UserError, match=name):
            here.run(f"model.init_from={path}", "study=next")


def test_every_product_has_a_checksum(here: Here) -> None:
    assert here.run() == 0
    path = here.folder()
    assert set(here.loaded().manifest["files"]) == set(session.PRODUCTS)
    verify(path, *session.PRODUCTS)
    with open(path / "metrics.csv", "a") as rows:
        rows.write("\n")
    with pytest.raises(UserError, match=r"metrics\.csv"):
        verify(path, *session.PRODUCTS)


def test_a_changed_tokenizer_of_an_interrupted_run_is_made_again(here: Here, capsys) -> None:
    here.kill_at(5)
    file = here.folder() / "tokenizer.json"
    whole = file.read_text()
    file.write_text(whole.replace("plus", "sulp").replace("0", "o"))
    assert file.read_text() != whole
    assert here.run() == 0
    assert "tokenizer.json is damaged" in capsys.readouterr().err
    assert file.read_text() == whole


def test_a_changed_row_of_an_interrupted_run_is_reported(here: Here, capsys) -> None:
    here.kill_at(5)
    file = here.folder() / "metrics.csv"
    lines = file.read_text().splitlines()
    lines[2] = lines[2].replace(lines[2].split(",")[3], "9.9")
    file.write_text("\n".join(lines) + "\n")
    assert here.run() == 0
    assert "metrics.csv was damaged or edited" in capsys.readouterr().err


def test_a_flipped_format_of_a_checkpoint_is_the_checkpoint_before(here: Here, capsys) -> None:
    here.kill_at(9)
    newest = sorted((here.folder() / "checkpoints").glob("*.json"))[-1]
    newest.write_text(newest.read_text().replace('"format": 1', '"format": 5'))
    assert here.run() == 0
    said = capsys.readouterr()
    assert "step-000000008 is damaged" in said.err and "resuming from step 6" in said.out


@pytest.mark.parametrize("leads", ["somewhere", "nowhere"])
def test_checkpoints_behind_a_link(here: Here, tmp_path: Path, leads: str) -> None:
    here.kill_at(5)
    folder = here.folder() / "checkpoints"
    folder.rename(tmp_path / "somewhere")
    folder.symlink_to(tmp_path / leads)
    assert here.run() == 0
    whole = numbers(here.folder())
    assert here.run("rerun=true") == 0
    assert numbers(here.folder()) == whole
    assert not folder.is_symlink()


@pytest.mark.parametrize("content", ["{}", '{"status": "complete"}', "[" * 100_000, '{"resolved": 3}', "null", "\0"])
@pytest.mark.parametrize("state", ["complete", "interrupted"])
def test_a_manifest_without_fields_is_no_dead_end(here: Here, content: str, state: str) -> None:
    if state == "complete":
        assert here.run() == 0
    else:
        here.kill_at(5)
    (here.folder() / "run.json").write_text(content)
    try:
        assert here.run() == 0
    except UserError as mistake:
        assert "run.json" in str(mistake) and "rerun=true" in str(mistake)
    assert here.run("rerun=true") == 0


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    write_manifest(
        tmp_path, {"format": 1, "status": "complete", "result": {"val_loss": 1.25}, "predicted": {"interval": (1, 2)}}
    )
    assert read_manifest(tmp_path)["result"]["val_loss"] == 1.25
    file = tmp_path / "run.json"
    file.write_text(file.read_text().replace("1.25", "1.24"))
    with pytest.raises(UserError, match=r"rerun=true"):
        read_manifest(tmp_path)
    content = json.loads(file.read_text())
    del content["checksum"]
    file.write_text(json.dumps(content))
    assert read_manifest(tmp_path)["result"]["val_loss"] == 1.24, "runs made before there was a checksum"


def test_everything_is_on_the_disk_before_a_run_is_complete(here: Here) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    here.monkeypatch.setattr(os, "fsync", noted)
    assert here.run() == 0
    last = max(i for i, name in enumerate(synced) if name.startswith("run.json"))
    for name in ("model.safetensors", "tokenizer.json", "metrics.csv", "config.yaml"):
        places = [i for i, each in enumerate(synced) if each.startswith(name)]
        assert places and max(places) < last
        assert here.folder().name in synced[max(places) :]
