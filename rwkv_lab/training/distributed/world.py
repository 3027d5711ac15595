"""Several processes on one run: plain torch.distributed, data parallel; one process without it."""

import gc
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import TrainerConfig
from rwkv_lab.training.distributed import torchrun

# The others wait this long for rank 0, which alone measures the whole held-out part at the end.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """The processes of this run; ``rank`` 0 writes."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over ranks of a tensor every rank has."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def any(self, flag: bool, device: str) -> bool:
        """Whether any rank raises ``flag``."""
        if self.size == 1:
            return flag
        raised = torch.tensor(int(flag), device=device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())


def join(trainer: TrainerConfig) -> World:
    """Joins the run's process group; a Mistake where the configuration and the launch do not fit each other."""
    ranks = torchrun.ranks()
    if trainer.strategy is None:
        raise UserError(f"torchrun started {ranks} processes and trainer.strategy is unset: add trainer=ddp")
    if trainer.processes is not None and trainer.processes != ranks:
        raise UserError(f"trainer.processes={trainer.processes} and torchrun started {ranks}: make them agree")
    cuda = trainer.device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        local, seen = torchrun.local_rank(), torch.cuda.device_count()
        if local >= seen:
            raise UserError(f"torchrun started more processes than the {seen} GPUs here: lower --nproc-per-node")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    return World(dist.get_rank(), dist.get_world_size())


def lost_touch(error: Exception) -> bool:
    """Whether ``error`` is what a rank sees of another one's end."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def leave() -> None:
    """Leaves the process group once every rank is here; gloo aborts at exit in a tenth of all runs without this."""
    gc.collect()
    try:
        dist.barrier()
    except Exception as error:
        # What there was to save together is saved.
        if not lost_touch(error):
            raise
    dist.destroy_process_group()


class TrainingLoss(nn.Module):
    """``model.loss`` as a forward pass, which is what DistributedDataParallel hooks into."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.model.loss(idx, targets)  # type: ignore[operator]


def wrap(model: nn.Module, world: World) -> nn.Module:
    """The module whose call gives the training loss and whose gradients are means over ranks."""
    loss = TrainingLoss(model)
    if world.size == 1:
        return loss
    return nn.parallel.DistributedDataParallel(loss, gradient_as_bucket_view=True)


def synchronised(module: nn.Module, last: bool) -> AbstractContextManager:
    """Gradients travel with the last micro-batch of an update only."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()
