"""The memory a run needs on a device, by what takes it, and settings that fit a device.

One update of the model with two and with three layers is traced on tensors without storage; what lies between the two
is a layer. The phases of an update that can be its largest are the loss, when all activations are kept, the blocks'
backward pass, and the optimizer's step.
"""

import dataclasses
import itertools
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rwkv_lab.config.schema import Config, TrainerConfig
from rwkv_lab.training import device
from rwkv_lab.util.units import count

if TYPE_CHECKING:
    from torch import nn

RESERVED = 0.1  # of a device's memory, for its context, libraries and gaps between blocks
LEAST_TOKENS = 4096  # of a micro-batch below which a GPU is not busy


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators made and that are still alive; views count once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage(), given)
        return made

    def _watch(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class Trace:
    """Bytes beside weights and optimizer state in the phases of an update, gradients among them."""

    activations: float  # kept when the last block is through
    loss: float  # most until the gradient reaches the blocks
    backward: float  # most from there on

    def __sub__(self, other: "Trace") -> "Trace":
        return Trace(*(one - two for one, two in zip(*map(dataclasses.astuple, (self, other)), strict=True)))

    def plus(self, layers: int, layer: "Trace") -> "Trace":
        return Trace(*(x + layers * d for x, d in zip(*map(dataclasses.astuple, (self, layer)), strict=True)))


@dataclass(frozen=True)
class Memory:
    """Bytes on one device; ``peak`` is below the sum of the parts, which are not all there at once."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    loss: float  # logits and their gradients
    peak: float

    @property
    def parts(self) -> dict[str, float]:
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "peak"}


def trace(config: Config, vocab_size: int, n_layer: int, batch: int, precision: str, again: bool) -> Trace:
    """Return what an update of the model with ``n_layer`` layers keeps; ``again``: activation checkpointing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from rwkv_lab.ops import resolve_backend

    backend = resolve_backend(config.ops.backend, "cpu")  # builds kernels, which tensors without storage cannot
    shape = dataclasses.replace(config.model, n_layer=n_layer)
    trainer = dataclasses.replace(config.trainer, activation_checkpointing=again)
    resolved = device.Resolved("cpu", precision, backend, 1)
    live, kept = LiveBytes(), [0.0, 0.0]

    def reached(gradient: torch.Tensor) -> None:
        # From here on the peak is that of the blocks' backward pass.
        kept[1], live.peak = live.peak, live.now

    def read(module: Any, inputs: Any, x: torch.Tensor) -> None:
        kept[0] = live.now
        if x.requires_grad:
            x.register_hook(reached)

    with FakeTensorMode():
        model = shape.build(vocab_size, backend)
        device.dress(model, trainer, resolved)
        model.ln_out.register_forward_hook(read)
        tokens = torch.zeros((batch, shape.ctx_len), dtype=torch.int64)
        with live:
            with resolved.autocast():
                loss = model.loss(tokens, tokens)
            loss.backward()
    return Trace(kept[0], kept[1], live.peak)


@dataclass
class Planner:
    """What a run needs, and settings that fit devices. Traces are kept: many settings share them."""

    config: Config
    parameters: Mapping[str, "nn.Parameter"]
    vocab_size: int
    _traces: dict[tuple[int, str, bool], Trace] = dataclasses.field(default_factory=dict)

    def need(self, trainer: TrainerConfig, processes: int = 1) -> Memory:
        """Return the memory of each of ``processes`` devices for a run as ``trainer`` has it."""
        precision = trainer.precision if trainer.precision in device.HALVES else "fp32"
        batch = max(1, trainer.batch_size // (trainer.accumulate * processes))
        found = self._trace(batch, precision, trainer.activation_checkpointing)
        parameters = self.parameters
        weights = 4.0 * sum(parameter.numel() for parameter in parameters.values())
        optimizer = float(self.config.optimizer.state_bytes(parameters))
        shares = processes if trainer.strategy == "fsdp" else 1
        # Gradients stay through the next forward pass where several micro-batches add to them, and in ddp's buckets.
        stay = trainer.accumulate > 1 or (trainer.strategy == "ddp" and processes > 1)
        before = weights / shares if stay else 0.0
        backward = max(found.backward, before + found.activations if stay else 0.0)
        gathered = 0.0
        if shares > 1:
            blocks = 4.0 * sum(p.numel() for name, p in parameters.items() if name.startswith("blocks."))
            block, root = blocks / self.config.model.n_layer, weights - blocks
            # Two blocks' weights and all of the root's are whole; of the gradients only one block's and the root's.
            gathered = 2 * block + root
            backward -= max(0.0, blocks - block) * (1 - 1 / shares)
        loss = before + found.loss
        peak = (weights + optimizer) / shares + max(gathered + max(loss, backward), weights / shares)
        head = max(0.0, found.loss - found.activations)
        held = weights / shares + gathered
        return Memory(held, weights / shares, optimizer / shares, found.activations, head, peak)

    def _trace(self, batch: int, precision: str, again: bool) -> Trace:
        key = (batch, precision, again)
        if key not in self._traces:
            two, three = (trace(self.config, self.vocab_size, layers, *key) for layers in (2, 3))
            self._traces[key] = two.plus(self.config.model.n_layer - 2, three - two)
        return self._traces[key]

    def fitting(self, processes: int, size: float) -> tuple[TrainerConfig, Memory] | None:
        """Return settings, quickest first, that fit ``processes`` devices of ``size`` bytes; None if none do.

        batch_size stays unless the devices cannot share it. Less memory comes from more micro-batches, then from
        computing activations again, then from shares of the model.
        """
        for alike in _settings(self.config, processes):
            found = None
            for trainer in alike:
                memory = self.need(trainer, processes)
                if memory.peak > (1 - RESERVED) * size:
                    break
                found = trainer, memory
            if found is not None:
                return found
        return None


def _settings(config: Config, processes: int) -> Iterator[list[TrainerConfig]]:
    """Yield settings that differ in accumulate only, the most micro-batches first; the quickest lists come first."""
    batch = -(-config.trainer.batch_size // processes) * processes
    share = batch // processes
    parts = [n for n in range(1, share + 1) if share % n == 0]
    busy = [n for n in parts if share // n * config.model.ctx_len >= LEAST_TOKENS] or [1]
    strategies: tuple[Literal["ddp", "fsdp"] | None, ...] = ("ddp", "fsdp") if processes > 1 else (None,)
    for accumulations in (busy, [n for n in parts if n not in busy]):
        for strategy, again in itertools.product(strategies, (False, True)):
            shared = dataclasses.replace(
                config.trainer, batch_size=batch, strategy=strategy, activation_checkpointing=again
            )
            yield [dataclasses.replace(shared, accumulate=n) for n in reversed(_few(accumulations))]


def _few(numbers: list[int]) -> list[int]:
    """Return at most one of ``numbers`` for each doubling, and the last: a trace takes its time."""
    kept: list[int] = []
    for n in numbers:
        if not kept or n >= 2 * kept[-1]:
            kept.append(n)
    return kept if not numbers or kept[-1] == numbers[-1] else [*kept, numbers[-1]]


def advice(config: Config, parameters: Mapping[str, "nn.Parameter"], vocab_size: int) -> str:
    """Return a sentence on a run that is out of memory: what to change, and what is large."""
    memory = Planner(config, parameters, vocab_size).need(config.trainer)
    parts = sorted(memory.parts.items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {count(size)}B" for name, size in parts)
    again = "" if config.trainer.activation_checkpointing else ", trainer.activation_checkpointing=true"
    smaller = (
        again
        if parts[0][0] in ("activations", "loss")
        else f", or choose a smaller model or vocabulary (now {vocab_size})"
    )
    return (
        f"out of memory: lower trainer.batch_size, or raise trainer.accumulate{smaller}; of about "
        f"{count(memory.peak)}B, {shown}"
    )
