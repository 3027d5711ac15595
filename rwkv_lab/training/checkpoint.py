"""Checkpoints: model, optimizers, progress and random states in two files, each written atomically.

``step-N.safetensors`` holds tensors only, so reading one executes nothing; ``step-N.json`` is written after it and
carries the progress, the sha256 of the tensors and one of its own. A checkpoint without its JSON, or with a hash that
does not match, does not count. Of a model in shares every process writes its own, by torch.distributed.checkpoint, into
the folder ``step-N.shares``.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rwkv_lab.config.errors import UserError
from rwkv_lab.util.io import sync, write_json
from rwkv_lab.util.tensorfile import write_tensors

if TYPE_CHECKING:
    from rwkv_lab.training.distributed.world import World

FORMAT, FORMAT_OF_SHARES = 1, 2
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
    skipped: int = 0  # updates that loss scaling skipped


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint, read as far as it can be without the model."""

    progress: Progress
    tensors: Callable[[nn.Module], Mapping[str, torch.Tensor]]  # of the model to restore, by name
    shares: bool = False


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
    _make(folder)
    file = folder / f"step-{progress.step:09d}.safetensors"
    digest = write_tensors(tensors, file)
    _record(file.with_suffix(".json"), {"format": FORMAT, "sha256": digest}, progress)
    _prune(folder, keep_every)


def save_shares(
    folder: Path, progress: Progress, tensors: Mapping[str, torch.Tensor], world: "World", keep_every: int = 0
) -> None:
    """Write a checkpoint of tensors that lie in shares on the ranks of ``world``; each calls this with its own."""
    import torch.distributed.checkpoint as shared
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    shares = folder / f"step-{progress.step:09d}.shares"
    if world.writes:
        _make(folder)
        shutil.rmtree(shares, ignore_errors=True)
    world.meet()
    # Safetensors, as everywhere: reading them executes nothing. They cannot give a part of a scalar.
    writer = HuggingFaceStorageWriter(str(shares), save_distributed=True)
    vectors = {name: value.reshape(1) if value.dim() == 0 else value for name, value in tensors.items()}
    shared.save(vectors, storage_writer=writer, process_group=world.side)
    if world.writes:
        sync(shares)
        hashes = {file.name: _file_hash(file) for file in sorted(shares.iterdir())}
        _record(shares.with_suffix(".json"), {"format": FORMAT_OF_SHARES, "shares": hashes}, progress)
        _prune(folder, keep_every)


def _make(folder: Path) -> None:
    if not folder.is_dir():
        # A link that leads nowhere.
        folder.unlink(missing_ok=True)
        folder.mkdir()
        sync(folder.parent)


def _file_hash(file: Path) -> str:
    with open(file, "rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


def _record(file: Path, content: dict[str, Any], progress: Progress) -> None:
    record = content | asdict(progress)
    write_json(file, record | {"record_sha256": _record_hash(record)})


def _prune(folder: Path, keep_every: int) -> None:
    """Remove all checkpoints but the newest two and those at multiples of ``keep_every``, and what is unfinished."""
    for old in sorted(folder.glob("step-*.json"))[:-KEPT]:
        if keep_every and _step(old) % keep_every == 0:
            continue
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)
        shutil.rmtree(old.with_suffix(".shares"), ignore_errors=True)
    kept = {path.stem for path in folder.glob("step-*.json")}
    unfinished = (path for path in folder.glob("*.safetensors") if path.stem not in kept)
    for leftover in (*folder.glob("*.partial"), *folder.glob(".tmp*"), *unfinished):
        leftover.unlink(missing_ok=True)
    for leftover in folder.glob("*.shares"):
        if leftover.stem not in kept:
            shutil.rmtree(leftover, ignore_errors=True)


class Saver:
    """Writes checkpoints into ``folder`` behind the training loop, one at a time, from a copy of the tensors.

    A context manager: at its end the last one is on the disk. A run that is killed loses what it trained since the
    checkpoint before the one that was being written. Where memory is short, it writes at once and copies nothing.
    """

    def __init__(self, folder: Path, keep_every: int = 0):
        self.folder, self.keep_every = folder, keep_every
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None

    def begin(self, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
        """Begin to write, when the one before is written; the errors of ``save`` come at the next call."""
        self.finish()
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > SHARE_OF_MEMORY * available_bytes():
            save(self.folder, progress, tensors, self.keep_every)
            return
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        self._last = self._pool.submit(save, self.folder, replace(progress), copies, self.keep_every)

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
    """Copy another run's checkpoint of ``step`` into the new ``folder``; False if it is damaged, gone or in shares."""
    try:
        saved = _read(source / f"step-{step:09d}.json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return False
    if saved.shares:
        return False
    # The rows of metrics.csv that belong to it are written anew.
    saved.progress.rows_sha256 = None
    save(folder, saved.progress, load_file(source / f"step-{step:09d}.safetensors"))
    return True


def _record_hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read(record: Path) -> Saved:
    content: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    if content.pop("record_sha256") != _record_hash(content):
        raise ValueError("its progress does not match its checksum")
    if content["format"] > FORMAT_OF_SHARES:
        raise UserError(f"{record} was written by a newer version of rwkv_lab: use that version, or rerun=true")
    progress = Progress(
        int(content["step"]),
        int(content["tokens"]),
        float(content["seconds"]),
        content.get("rows_sha256"),
        int(content.get("skipped", 0)),
    )
    if content["format"] == FORMAT_OF_SHARES:
        folder = record.with_suffix(".shares")
        for name, sha256 in content["shares"].items():
            if _file_hash(folder / name) != sha256:
                raise ValueError(f"its share {name} does not match its checksum")
        return Saved(progress, lambda model: _read_shares(folder, model), shares=True)
    file = record.with_suffix(".safetensors")
    if _file_hash(file) != content["sha256"]:
        raise ValueError("its content does not match its checksum")
    tensors = load_file(file)
    return Saved(progress, lambda model: tensors)


def _read_shares(folder: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint in shares, each laid out like the parameter of ``model`` it belongs to."""
    import torch.distributed.checkpoint as shared
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    reader = HuggingFaceStorageReader(str(folder))
    own, parameters = model.state_dict(), dict(model.named_parameters())
    tensors: dict[str, torch.Tensor] = {}
    scalars = []
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        kind, _, rest = name.partition(".")
        owner = own.get(rest) if kind == "model" else parameters.get(rest.rpartition(".")[0])
        size, dtype = entry.size, entry.properties.dtype  # type: ignore[union-attr]
        if owner is not None and owner.shape == size:
            tensors[name] = torch.empty_like(owner, dtype=dtype, requires_grad=False)
        else:
            tensors[name] = torch.empty(size, dtype=dtype)
            scalars += [name] if size.numel() == 1 else []
    shared.load(tensors, storage_reader=reader)
    return tensors | {name: tensors[name].reshape(()) for name in scalars}


def newest(folder: Path, say: Callable[[str], None]) -> Saved | None:
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
