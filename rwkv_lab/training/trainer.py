"""The training loop, from top to bottom."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from rwkv_lab.config.schema import Config
from rwkv_lab.data import Corpus, sampling
from rwkv_lab.models.lm import LM
from rwkv_lab.training import checkpoint
from rwkv_lab.training.checkpoint import Progress
from rwkv_lab.training.device import Resolved
from rwkv_lab.training.distributed import world
from rwkv_lab.training.distributed.world import World
from rwkv_lab.training.evaluate import Evaluation, evaluate_fixed
from rwkv_lab.training.metrics import MetricsLog
from rwkv_lab.training.signals import Stopped, StopRequest

Row = dict[str, float | int | None]


class NotFinite(Exception):
    """The loss or the gradient is infinite or NaN; the message says which, where and what to try."""


@dataclass
class Listeners:
    """Who hears of the run's steps; both must return quickly."""

    logged: Callable[[Row], None]
    stepped: Callable[[Progress, float, float], None]  # progress, loss, rate


@dataclass
class Training:
    """Everything one run consists of while it trains."""

    config: Config
    resolved: Resolved
    corpus: Corpus
    model: LM
    optimizer: torch.optim.Optimizer
    lr: Callable[[int], float]  # the rate of update i
    total: int  # updates
    folder: Path
    world: World = field(default_factory=World)
    progress: Progress = field(default_factory=Progress)

    @property
    def ctx_len(self) -> int:
        return self.config.model.ctx_len


def batch(training: Training, step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets [b,T] of one micro-batch on this rank: a pure function of seed, step, micro and rank."""
    trainer = training.config.trainer
    size = trainer.batch_size // (trainer.accumulate * training.world.size)
    first = 0 if trainer.overfit else step * trainer.batch_size
    first += (micro * training.world.size + training.world.rank) * size
    tokens = training.corpus.train.tokens
    starts = sampling.offsets(
        training.config.data.order, len(tokens), training.ctx_len, training.config.seed, first, size
    )
    x, y = (torch.from_numpy(array) for array in sampling.gather(tokens, starts, training.ctx_len))
    device = training.resolved.device
    if device != "cpu":
        return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
    return x, y


def update(training: Training, loss_module: nn.Module, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimiser update. Returns the batch's mean loss before it and the gradient's L2 norm before clipping."""
    trainer = training.config.trainer
    total_loss = torch.zeros((), device=training.resolved.device)
    for micro in range(trainer.accumulate):
        x, y = batch(training, step, micro)
        with world.synchronised(loss_module, last=micro == trainer.accumulate - 1):
            with training.resolved.autocast():
                loss = loss_module(x, y) / trainer.accumulate
            loss.backward()
        total_loss += loss.detach()
    norm = nn.utils.clip_grad_norm_(training.model.parameters(), trainer.clip or math.inf, foreach=True)
    return training.world.mean(total_loss), norm


def train(training: Training, metrics: MetricsLog | None, listeners: Listeners) -> None:
    """Trains from ``training.progress`` to the end.

    Raises ``Stopped`` after a requested stop, with a checkpoint saved, and ``NotFinite``, with the weights as they were
    before the update that failed wherever that can be known without waiting for the device.
    """
    config, progress, trainer = training.config, training.progress, training.config.trainer
    loss_module = world.wrap(training.model, training.world)
    on_cpu = training.resolved.device == "cpu"
    training.model.train()
    started = time.monotonic() - progress.seconds
    last_log = (progress.seconds, progress.tokens)
    with StopRequest() as stop:
        for step in range(progress.step, training.total):
            lr = training.lr(step)
            config.optimizer.set_step(training.optimizer, step, lr)
            loss, norm = update(training, loss_module, step)
            done = step + 1
            logs = done % trainer.log_every == 0 or done == training.total
            evaluates = bool(trainer.eval_every) and done % trainer.eval_every == 0 and done < training.total
            saves = bool(trainer.checkpoint_every) and done % trainer.checkpoint_every == 0
            if on_cpu or logs or saves or evaluates:
                require_finite(step, loss.item(), norm.item(), lr)
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)
            progress.step, progress.tokens = done, progress.tokens + trainer.batch_size * training.ctx_len
            progress.seconds = time.monotonic() - started
            if logs or evaluates:
                held_out = evaluate(training) if evaluates or done == training.total else None
                row = _row(training, lr, loss.item(), norm.item(), held_out, last_log)
                last_log = (progress.seconds, progress.tokens)
                # Time spent measuring is not training time.
                started = time.monotonic() - progress.seconds
                if metrics is not None:
                    metrics.append(row)
                listeners.logged(row)
            if on_cpu or logs:
                listeners.stepped(progress, loss.item(), lr)
            stopping = training.world.any(stop.requested, training.resolved.device)
            if saves or stopping or (done == training.total):
                save(training, metrics)
                started = time.monotonic() - progress.seconds
            if stopping:
                raise Stopped


def require_finite(step: int, loss: float, norm: float, lr: float) -> None:
    """Raises ``NotFinite`` where the loss or the gradient norm of update ``step`` is no number."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", norm)
        raise NotFinite(
            f"the {what} became {value} at step {step + 1} with lr {lr:.3g}; "
            "try a lower schedule.lr_init, more schedule.warmup_steps, or trainer.precision=fp32"
        )


def evaluate(training: Training) -> Evaluation:
    """The loss on the fixed held-out part."""
    with training.resolved.autocast():
        return evaluate_fixed(
            training.model,
            training.corpus.val or training.corpus.train,
            training.ctx_len,
            training.config.trainer.eval_tokens,
            max(training.config.trainer.batch_size, 16),
            training.resolved.device,
        )


def save(training: Training, metrics: MetricsLog | None) -> None:
    """A checkpoint of this moment; the metrics up to it are made durable first."""
    if not training.world.writes:
        return
    if metrics is not None:
        metrics.sync()
    tensors = checkpoint.tensors_of(training.model, training.optimizer)
    checkpoint.save(training.folder / "checkpoints", training.progress, tensors)


def _row(
    training: Training, lr: float, loss: float, norm: float, held_out: Evaluation | None, last: tuple[float, int]
) -> Row:
    progress = training.progress
    elapsed = progress.seconds - last[0]
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "lr": lr,
        "train_loss": loss,
        "val_loss": held_out.loss if held_out else None,
        "val_bpb": held_out.bpb if held_out and math.isfinite(held_out.bpb) else None,
        "grad_norm": norm,
        "seconds": progress.seconds,
        "tokens_per_second": (progress.tokens - last[1]) / elapsed if elapsed > 0 else None,
    }
