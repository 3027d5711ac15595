"""Checkpoints: model, optimizers, progress and random states in two files, each written atomically.

``step-N.safetensors`` holds tensors only, so reading one executes nothing; ``step-N.json`` is written after it and
carries the progress, the sha256 of the tensors and one of its own. A checkpoint without its JSON, or with a hash that
does not match, does not count.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rwkv_lab.config.errors import UserError
from rwkv_lab.util.io import sync, write_json
from rwkv_lab.util.tensorfile import write_tensors

FORMAT = 1
KEPT = 2
SHARE_OF_MEMORY = 0.5  # of what is available, that the copy of a checkpoint may take
NUMBER = ":number"  # behind the name of an optimizer's state that is a Python number


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # completed updates
    tokens: int = 0  # training tokens seen
    seconds: float = 0.0  # training time, all sessions together
    rows_sha256: str | None = None  # of the rows of metrics.csv up to here


def tensors_of(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Return everything a step depends on, by name: ``model.*``, ``optimizer.<parameter>.*``, ``random.*``.

    A state that is a Python number has ``NUMBER`` behind its name. Raises TypeError for one that is neither a tensor
    nor a number.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors |= _tensor(f"optimizer.{name}.{key}", value)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def _tensor(name: str, value: object) -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, (int, float)):
        return {name + NUMBER: torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)}
    if value is None:
        return {}
    raise TypeError(f"{name} is a {type(value).__name__}: an optimizer's state must be tensors and numbers")


def restore(tensors: Mapping[str, torch.Tensor], model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Put ``tensors_of``'s tensors back; KeyError or RuntimeError if names or shapes differ."""
    model.load_state_dict({name: tensors[f"model.{name}"] for name in model.state_dict()})
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        content = optimizer.state_dict()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        states = {i: _state(tensors, f"optimizer.{names[parameter]}.") for i, parameter in enumerate(parameters)}
        content["state"] = {i: state for i, state in states.items() if state}
        # torch knows which state belongs on the parameter's device and which, such as some steps, does not.
        optimizer.load_state_dict(content)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _state(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    """Return one parameter's state by key."""
    state: dict[str, Any] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            key = name.removeprefix(prefix)
            state[key.removesuffix(NUMBER)] = value.item() if key.endswith(NUMBER) else value.clone()
    return state


def save(folder: Path, progress: Progress, tensors: dict[str, torch.Tensor], keep_every: int = 0) -> None:
    """Write the checkpoint of ``progress.step`` into ``folder``; remove all but the newest two.

    Those at multiples of ``keep_every`` stay as well, unless it is 0.
    """
    if not folder.is_dir():
        # A link that leads nowhere.
        folder.unlink(missing_ok=True)
        folder.mkdir()
        sync(folder.parent)
    file = folder / f"step-{progress.step:09d}.safetensors"
    digest = write_tensors(tensors, file)
    record = {"format": FORMAT, "sha256": digest, **asdict(progress)}
    write_json(file.with_suffix(".json"), record | {"record_sha256": _record_hash(record)})
    for old in sorted(folder.glob("step-*.json"))[:-KEPT]:
        if keep_every and _step(old) % keep_every == 0:
            continue
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    kept = {path.stem for path in folder.glob("step-*.json")}
    unfinished = (path for path in folder.glob("*.safetensors") if path.stem not in kept)
    for leftover in (*folder.glob("*.partial"), *folder.glob(".tmp*"), *unfinished):
        leftover.unlink(missing_ok=True)


class Saver:
    """Writes checkpoints into ``folder`` behind the training loop, one at a time, from a copy of the tensors.

    A context manager: at its end the last one is on the disk. A run that is killed loses what it trained since the
    checkpoint before the one that was being written. Where memory is short, it writes at once and copies nothing.
    """

    def __init__(self, folder: Path, keep_every: int = 0):
        self._folder, self._keep_every = folder, keep_every
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None

    def begin(self, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
        """Begin to write, when the one before is written; the errors of ``save`` come at the next call."""
        self.finish()
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > SHARE_OF_MEMORY * available_bytes():
            save(self._folder, progress, tensors, self._keep_every)
            return
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        self._last = self._pool.submit(save, self._folder, replace(progress), copies, self._keep_every)

    def finish(self) -> None:
        """Wait until what was begun is on the disk. Raises the errors of ``save``."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, Exception):
                self.finish()
        finally:
            self._pool.shutdown()


def available_bytes() -> float:
    """Return the memory that is free or can be freed at once; infinity where the system does not tell (Linux does)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration, ValueError):
        return math.inf


def kept_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in ``folder``, in order."""
    return sorted(_step(record) for record in folder.glob("step-*.json"))


def _step(record: Path) -> int:
    digits = record.stem.removeprefix("step-")
    return int(digits) if digits.isascii() and digits.isdecimal() else 0


def adopt(source: Path, step: int, folder: Path) -> bool:
    """Copy another run's checkpoint of ``step`` into the new ``folder``; False if it is damaged or gone."""
    try:
        progress, tensors = _read(source / f"step-{step:09d}.json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return False
    # The rows of metrics.csv that belong to it are written anew.
    progress.rows_sha256 = None
    save(folder, progress, tensors)
    return True


def _record_hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read(record: Path) -> tuple[Progress, dict[str, torch.Tensor]]:
    content: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    if content.pop("record_sha256") != _record_hash(content):
        raise ValueError("its progress does not match its checksum")
    if content["format"] > FORMAT:
        raise UserError(f"{record} was written by a newer version of rwkv_lab: use that version, or rerun=true")
    file = record.with_suffix(".safetensors")
    with open(file, "rb") as written:
        if hashlib.file_digest(written, "sha256").hexdigest() != content["sha256"]:
            raise ValueError("its content does not match its checksum")
    progress = Progress(
        int(content["step"]), int(content["tokens"]), float(content["seconds"]), content.get("rows_sha256")
    )
    return progress, load_file(file)


def newest(folder: Path, say: Callable[[str], None]) -> tuple[Progress, dict[str, torch.Tensor]] | None:
    """Return the newest whole checkpoint, or None; ``say`` gets one line for each that is damaged."""
    records = sorted(folder.glob("step-*.json"), reverse=True)
    for record in records:
        try:
            return _read(record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            say(f"checkpoint {record.stem} is damaged ({_reason(error)}); looking for the one before")
    if records:
        say("no checkpoint is whole: the run begins again at step 0")
    return None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
