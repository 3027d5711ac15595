"""How a run's model lies on its processes: whole on one, a copy on each (ddp), or a share on each (fsdp).

A layout is made for one model. ``loss`` is the module to call; ``exchanging`` surrounds each micro-batch;
``save`` writes a checkpoint; ``whole`` gives the model in one piece at the end.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from rwkv_lab.config.schema import TrainerConfig
from rwkv_lab.models import skeleton
from rwkv_lab.models.lm import LM
from rwkv_lab.training import checkpoint
from rwkv_lab.training.checkpoint import Progress, Saver
from rwkv_lab.training.distributed.world import World

Loss = Callable[..., Tensor]  # (model, *batch) -> mean loss


class TrainingLoss(nn.Module):
    """The objective's loss as a forward pass, which is what DistributedDataParallel hooks into."""

    def __init__(self, model: LM, loss: Loss):
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, *batch)


class Layout(Protocol):
    """What the loop knows of a model's processes."""

    loss: nn.Module  # its call ``(*batch)`` gives the training loss; gradients are means over ranks

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Context of a micro-batch: gradients are exchanged with the ``last`` of an update only."""
        ...

    def whole(self) -> LM:
        """Return the model in one piece on the rank that writes; on others it may stay in shares."""
        ...

    def save(self, saver: Saver, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint, or begin to, called by every rank."""
        ...


class Alone:
    """The model on one process."""

    def __init__(self, model: LM, loss: Loss, world: World, trainer: TrainerConfig, device: str):
        self._model, self._world = model.to(device), world
        self.loss: nn.Module = TrainingLoss(self._model, loss)

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def whole(self) -> LM:
        return self._model

    def save(self, saver: Saver, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        if self._world.writes:
            saver.begin(progress, dict(tensors))


class Copies(Alone):
    """A copy of the model on every process; gradients are views of the buckets in which they are exchanged."""

    def __init__(self, model: LM, loss: Loss, world: World, trainer: TrainerConfig, device: str):
        super().__init__(model, loss, world, trainer, device)
        self._copies: nn.parallel.DistributedDataParallel | None = None
        if world.size > 1:
            world.meet()
            self.loss = self._copies = nn.parallel.DistributedDataParallel(self.loss, gradient_as_bucket_view=True)

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last or self._copies is None else self._copies.no_sync()


class Shares:
    """A share of every parameter, gradient and optimizer state on each process (Zhao et al. 2023, arXiv 2304.11277).

    Before a block computes, its weights are gathered; afterwards they are dropped, and its gradients' means are shared
    out. Checkpoints are written and read in shares, so another number of processes can go on.
    """

    def __init__(self, model: LM, loss: Loss, world: World, trainer: TrainerConfig, device: str):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            MixedPrecisionPolicy,
            OffloadPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        # Nothing changes the states that blocks return in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
        world.meet()
        kind = torch.device(device).type
        # Without a type of its own, autocast sees float32 weights as it does on one process.
        gathered = torch.bfloat16 if trainer.gather == "bf16" else None
        mesh = init_device_mesh(kind, (world.size,))
        policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)
        offload = CPUOffloadPolicy() if trainer.cpu_offload and kind != "cpu" else OffloadPolicy()
        # The norm after the embedding is a block's by name, and computes before it.
        early = [block.ln0 for block in model.blocks if isinstance(block.ln0, nn.Module)]
        for module in (*early, *model.blocks, model):
            fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload)
        register_fsdp_forward_method(model, "loss")
        self._model, self._world, self._kind = model, world, kind
        self.loss: nn.Module = TrainingLoss(model, loss)

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        self._model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    def whole(self) -> LM:
        shares = self._model.state_dict()
        # One after the other: no device holds two gathered parameters.
        tensors = {name: full(share.to(self._kind)).cpu() if share.numel() else share for name, share in shares.items()}
        if not self._world.writes:
            return self._model
        model = skeleton(self._model.config, self._model.vocab_size).to_empty(device="cpu")
        model.load_state_dict(tensors, assign=True)
        return model.to(self._kind)

    def save(self, saver: Saver, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        checkpoint.save_shares(saver.folder, progress, tensors, self._world, saver.keep_every)


LAYOUTS: dict[str | None, Callable[[LM, Loss, World, TrainerConfig, str], Layout]] = {
    None: Alone,
    "ddp": Copies,
    "fsdp": Shares,
}


def full(value: Tensor) -> Tensor:
    """Return a tensor that lies in shares in one piece, on every rank; another as it is."""
    gather: Callable[[], Tensor] | None = getattr(value, "full_tensor", None)
    return value if gather is None else gather()
