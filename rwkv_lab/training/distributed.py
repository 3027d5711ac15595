"""Several processes on one run under torchrun: plain torch.distributed, data parallel; one process without it."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rwkv_lab.errors import Mistake


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


def launched_ranks() -> int:
    """How many processes torchrun started; 0 outside torchrun."""
    return int(os.environ.get("WORLD_SIZE", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def join(strategy: str | None, device: str) -> World:
    """Joins torchrun's process group; a Mistake where the configuration and the launch do not fit each other."""
    ranks = launched_ranks()
    if strategy is None and ranks > 1:
        raise Mistake(f"torchrun started {ranks} processes and trainer.strategy is unset: add trainer=ddp")
    if strategy is None:
        return World()
    if ranks == 0:
        raise Mistake("trainer=ddp needs torchrun: torchrun --nproc-per-node N run.py trainer=ddp")
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def leave(world: World) -> None:
    """Leaves the process group once every rank is here; gloo aborts at exit without this."""
    if dist.is_available() and dist.is_initialized():
        import gc

        gc.collect()
        dist.barrier()
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
