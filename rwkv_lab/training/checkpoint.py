"""Checkpoints: model, optimiser, progress and random states in two files, each written atomically.

``step-N.safetensors`` holds tensors only, so reading one executes nothing; ``step-N.json`` is written after it and
carries the progress, the sha256 of the tensors and one of its own. A checkpoint without its JSON, or where a hash
differs, does not count.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rwkv_lab.config.errors import UserError
from rwkv_lab.util.paths import write_json
from rwkv_lab.util.tensorfile import write_tensors

FORMAT = 1
KEPT = 2


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # completed updates
    tokens: int = 0  # training tokens seen
    seconds: float = 0.0  # training time, all sessions together


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Everything a step depends on, by name: ``model.*``, ``optimizer.<parameter>.*``, ``random.*``."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def restore(tensors: Mapping[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts ``tensors_of``'s tensors back; KeyError or RuntimeError where names or shapes differ."""
    model.load_state_dict({name: tensors[f"model.{name}"] for name in model.state_dict()})
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        for key, value in state.items():
            optimizer.state[parameter][key] = value.clone() if key == "step" else value.to(parameter.device)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def save(folder: Path, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
    """Writes the checkpoint of ``progress.step`` into ``folder`` and removes all but the newest two."""
    folder.mkdir(exist_ok=True)
    file = folder / f"step-{progress.step:09d}.safetensors"
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        write_tensors(tensors, partial)
        with open(partial, "rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
            os.fsync(written.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    record = {"format": FORMAT, "sha256": digest, **asdict(progress)}
    write_json(file.with_suffix(".json"), record | {"record_sha256": _record_hash(record)})
    for old in sorted(folder.glob("step-*.json"))[:-KEPT]:
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    kept = {path.stem for path in folder.glob("step-*.json")}
    unfinished = (path for path in folder.glob("*.safetensors") if path.stem not in kept)
    # safetensors itself writes to .tmp* first.
    for leftover in (*folder.glob("*.partial"), *folder.glob(".tmp*"), *unfinished):
        leftover.unlink(missing_ok=True)


def _record_hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read(record: Path) -> tuple[Progress, dict[str, torch.Tensor]]:
    content: dict[str, Any] = json.loads(record.read_text())
    if content.get("format", 0) > FORMAT:
        raise UserError(f"{record} was written by a newer version of rwkv_lab: use that version, or rerun=true")
    if content.pop("record_sha256") != _record_hash(content):
        raise ValueError("its progress does not match its checksum")
    file = record.with_suffix(".safetensors")
    with open(file, "rb") as written:
        if hashlib.file_digest(written, "sha256").hexdigest() != content["sha256"]:
            raise ValueError("its content does not match its checksum")
    progress = Progress(int(content["step"]), int(content["tokens"]), float(content["seconds"]))
    return progress, load_file(file)


def newest(folder: Path, say: Callable[[str], None]) -> tuple[Progress, dict[str, torch.Tensor]] | None:
    """The newest checkpoint that is whole, or None; what is damaged is said and passed over."""
    records = sorted(folder.glob("step-*.json"), reverse=True)
    for record in records:
        try:
            return _read(record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            say(f"checkpoint {record.stem} is damaged ({_reason(error)}); looking for the one before")
    if records:
        say("no checkpoint is whole: the run begins again at step 0")
    return None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
