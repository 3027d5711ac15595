"""Several processes on one run: plain torch.distributed; one process without it."""

import gc
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

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
    side: Any = None  # the processes' group on the CPU, for all that is not gradients

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's ``value`` on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.side)
        return box[0]

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean over ranks of a tensor that every rank has."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def meet(self) -> None:
        """Waits until every rank is here, so that none waits for another inside a GPU's collective."""
        if self.size > 1:
            dist.barrier(group=self.side)


def join(trainer: TrainerConfig) -> World:
    """Join the run's process group; UserError if the configuration and the launch do not fit each other."""
    ranks = torchrun.ranks()
    if trainer.strategy is None:
        raise UserError(
            f"torchrun started {ranks} processes and trainer.strategy is unset: add trainer=ddp or trainer=fsdp"
        )
    if trainer.processes is not None and trainer.processes != ranks:
        raise UserError(f"trainer.processes={trainer.processes} and torchrun started {ranks}: make them agree")
    cuda = trainer.device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        local, seen = torchrun.local_rank(), torch.cuda.device_count()
        if local >= seen:
            raise UserError(f"torchrun started more processes than the {seen} GPUs here: lower --nproc-per-node")
        torch.cuda.set_device(local)
    card = torch.device("cuda", torch.cuda.current_device()) if cuda else None
    # What fsdp keeps on the CPU is summed there.
    backend = "cpu:gloo,cuda:nccl" if cuda and trainer.cpu_offload else "nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, device_id=card)
    side = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return World(dist.get_rank(), dist.get_world_size(), side)


class LostTouch(Exception):
    """Another rank has died or does not answer."""


def lost_touch(error: Exception) -> bool:
    """Return whether ``error`` is what a rank sees when another one ends."""
    return isinstance(error, (LostTouch, dist.DistError)) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def leave(world: World) -> None:
    """Leaves the process group once every rank is here; gloo aborts at exit in a tenth of all runs without this."""
    gc.collect()
    try:
        world.meet()
    except Exception as error:
        # What there was to save together is saved.
        if not lost_touch(error):
            raise
    dist.destroy_process_group()
