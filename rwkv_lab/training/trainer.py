"""The training loop, from top to bottom."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from rwkv_lab.config.fields import whole
from rwkv_lab.config.schema import Config
from rwkv_lab.data import Corpus
from rwkv_lab.models.lm import LM
from rwkv_lab.models.lm import flops_per_token as flops_of
from rwkv_lab.training import checkpoint, metrics, profiling
from rwkv_lab.training.checkpoint import Progress
from rwkv_lab.training.context import RunContext
from rwkv_lab.training.device import Resolved
from rwkv_lab.training.distributed.layout import Layout, full
from rwkv_lab.training.distributed.vote import Vote
from rwkv_lab.training.distributed.world import World
from rwkv_lab.training.early_stop import EarlyStop
from rwkv_lab.training.evaluate import Evaluation
from rwkv_lab.training.loader import AHEAD, Loader
from rwkv_lab.training.loss_scaling import LossScaler
from rwkv_lab.training.metrics import MetricsLog, Update
from rwkv_lab.training.observations import Observer
from rwkv_lab.util import console
from rwkv_lab.util.signals import Stopped, StopSignals


class NotFinite(Exception):
    """The loss, the gradient or a weight is infinite or NaN; the message names it, the update and what to try."""


class StoppedEarly(Exception):
    """The run's stop rule gave it up; the message is the rule's sentence, and the checkpoint of ``step`` is saved."""

    def __init__(self, step: int, reason: str):
        super().__init__(reason)
        self.step = step


@dataclass
class Training:
    """Everything one run consists of while it trains."""

    context: RunContext
    resolved: Resolved
    corpus: Corpus
    model: LM
    layout: Layout
    optimizers: list[torch.optim.Optimizer]
    scaler: LossScaler
    lr: Callable[[int], float]  # the rate of update i
    total: int  # updates
    world: World = field(default_factory=World)
    progress: Progress = field(default_factory=Progress)
    loader: Loader[list[torch.Tensor]] = field(init=False)
    peak_flops: float = 0.0  # a second, of all devices together

    @property
    def config(self) -> Config:
        return self.context.config

    @property
    def folder(self) -> Path:
        return self.context.path

    @property
    def ctx_len(self) -> int:
        return self.config.model.ctx_len


def batch(training: Training, step: int, micro: int) -> list[torch.Tensor]:
    """Return one micro-batch of this rank: a pure function of seed, step, micro and rank."""
    config, trainer = training.config, training.config.trainer
    size = trainer.batch_size // (trainer.accumulate * training.world.size)
    first = 0 if trainer.overfit else step * trainer.batch_size
    first += (micro * training.world.size + training.world.rank) * size
    rows, *more = training.corpus.train.sequences(config.data.order, training.ctx_len, config.seed, first, size)
    arrays = [torch.from_numpy(array) for array in config.objective.batch(rows, first, config.seed, *more)]
    return arrays if training.resolved.device == "cpu" else [array.pin_memory() for array in arrays]


def loader(training: Training) -> Loader[list[torch.Tensor]]:
    """Return the micro-batches to come, in pinned memory and made ahead for a GPU."""
    parts = range(training.config.trainer.accumulate)
    places = ((step, micro) for step in range(training.progress.step, training.total) for micro in parts)
    ahead = 0 if training.resolved.device == "cpu" else AHEAD
    return Loader(functools.partial(batch, training), places, ahead)


def update(training: Training, loss_module: nn.Module, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute one update's gradients; return this rank's mean loss and the gradient's L2 norm before clipping."""
    trainer, where = training.config.trainer, training.resolved.device
    total_loss = torch.zeros((), device=where)
    for micro in range(trainer.accumulate):
        arrays = [array.to(where, non_blocking=True) for array in training.loader.take()]
        with training.layout.exchanging(last=micro == trainer.accumulate - 1):
            with training.resolved.autocast():
                loss = loss_module(*arrays) / trainer.accumulate
            training.scaler.backward(loss)
        total_loss += loss.detach()
    training.scaler.unscale()
    norm = nn.utils.clip_grad_norm_(training.model.parameters(), trainer.clip or math.inf, foreach=True)
    return total_loss, full(norm)


def train(
    training: Training, log: MetricsLog | None, live: console.Progress | None, rule: EarlyStop | None = None
) -> None:
    """Train from ``training.progress`` to the end, or until ``rule``, on the rank that writes, gives the run up.

    Raises ``Stopped`` after a requested stop and ``StoppedEarly`` after a verdict, both with a checkpoint saved, and
    ``NotFinite``, with the weights as they were before the update that failed wherever that can be known without
    waiting for the device. What is saved is finite.
    """
    config, progress, trainer = training.config, training.progress, training.config.trainer
    training.world.meet()
    flops_per_token = flops_of(training.model)
    on_cpu = training.resolved.device == "cpu"
    training.model.train()
    observer = Observer(training)
    started = time.monotonic() - progress.seconds
    logged_seconds, logged_tokens = progress.seconds, progress.tokens
    with (
        StopSignals(None, None, lasting=Stopped) as stop,
        Vote(training.world, trainer.timeout) as vote,
        loader(training) as training.loader,
        profiling.traced(training.folder, trainer.profile if training.world.writes else 0) as traced,
        checkpoint.Saver(training.folder / "checkpoints", trainer.keep_every) as saver,
    ):
        for step in range(progress.step, training.total):
            lr = training.lr(step)
            config.optimizer.set_lr(training.optimizers, step, lr)
            loss, norm = update(training, training.layout.loss, step)
            done = step + 1
            logs = done % trainer.log_every == 0 or done == training.total
            evaluates = bool(trainer.eval_every) and done % trainer.eval_every == 0 and done < training.total
            saves = bool(trainer.checkpoint_every) and done % trainer.checkpoint_every == 0
            saves |= bool(trainer.keep_every) and done % trainer.keep_every == 0
            known = on_cpu or logs or saves or evaluates
            if known:
                loss = training.world.mean(loss)
                require_finite(training, step, loss.item(), norm.item(), lr)
            observes = observer.active and (evaluates or done == training.total)
            if observes:
                observer.gradients(norm.item())
            training.scaler.step()
            traced()
            progress.step, progress.tokens = done, progress.tokens + trainer.batch_size * training.ctx_len
            progress.seconds, progress.skipped = time.monotonic() - started, training.scaler.skipped
            if logs or evaluates:
                row = metrics.row(
                    Update(
                        step=done,
                        tokens=progress.tokens,
                        lr=lr,
                        train_loss=loss.item(),
                        grad_norm=norm.item(),
                        held_out=evaluate(training) if evaluates or done == training.total else None,
                        seconds=progress.seconds,
                        new_tokens=progress.tokens - logged_tokens,
                        new_seconds=progress.seconds - logged_seconds,
                        model=training.model,
                        flops_per_token=flops_per_token,
                        peak_flops=training.peak_flops,
                        skipped=progress.skipped,
                    )
                )
                logged_seconds, logged_tokens = progress.seconds, progress.tokens
                if observes:
                    observer.append(done, progress.tokens, row["val_bpb"])
                # Time spent measuring is not training time.
                started = time.monotonic() - progress.seconds
                if log is not None:
                    log.append(row)
                if live is not None:
                    live.val_bpb, live.mfu = row["val_bpb"] or live.val_bpb, row["mfu"]
            if live is not None and (on_cpu or logs):
                live.update(done, progress.tokens, loss.item(), lr)
            stopping = vote.cast(stop.requested)
            given_up = ""
            if evaluates and config.stop is not None:
                given_up = training.world.broadcast(rule.reason_to_stop() if rule is not None else "")
            if saves or stopping or given_up or (done == training.total):
                if not known:
                    loss = training.world.mean(loss)
                    require_finite(training, step, loss.item(), norm.item(), lr)
                require_finite_weights(training.model, step, lr)
                save(training, saver, log)
                started = time.monotonic() - progress.seconds
            if stopping:
                raise Stopped(done)
            if given_up:
                raise StoppedEarly(done, given_up)
    training.model = training.layout.whole()


def require_finite(training: Training, step: int, loss: float, norm: float, lr: float) -> None:
    """Raise ``NotFinite`` if the loss or the gradient norm of update ``step`` is infinite or NaN.

    A gradient that loss scaling answers by a smaller scale is not a fault.
    """
    if not math.isfinite(loss) or not (math.isfinite(norm) or training.scaler.may_skip()):
        what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", norm)
        raise _not_finite(what, value, step, lr)


def require_finite_weights(model: nn.Module, step: int, lr: float) -> None:
    """Raise ``NotFinite`` if a weight is infinite or NaN after update ``step``."""
    largest = full(nn.utils.get_total_norm(list(model.parameters()), math.inf)).item()
    if not math.isfinite(largest):
        raise _not_finite("largest weight", largest, step, lr)


def _not_finite(what: str, value: float, step: int, lr: float) -> NotFinite:
    return NotFinite(
        f"the {what} became {value} at step {step + 1} with lr {lr:.3g}; "
        "try a lower schedule.lr_init, more schedule.warmup_steps, or trainer.precision=fp32"
    )


def evaluate(training: Training) -> Evaluation:
    """Return the loss on the fixed held-out part."""
    config = training.config
    with training.resolved.autocast():
        return config.objective.evaluate(
            training.model,
            training.corpus.val or training.corpus.train,
            training.ctx_len,
            max(config.trainer.batch_size, 16),
            training.resolved.device,
            whole(config.trainer.eval_tokens),
        )


def save(training: Training, saver: checkpoint.Saver, log: MetricsLog | None) -> None:
    """Begin to save a checkpoint of this moment; the metrics up to it are made durable first."""
    if log is not None:
        training.progress.rows_sha256 = log.sync()
    tensors = checkpoint.tensors_of(training.model, training.optimizers) | training.scaler.tensors()
    training.layout.save(saver, training.progress, tensors)
