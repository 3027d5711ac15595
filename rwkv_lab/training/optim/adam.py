"""Adam and AdamW with the decay groups and late betas of the RWKV recipes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_lab.config.derived import tokens_per_step
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import Count, setting, whole
from rwkv_lab.config.kinds import OptimizerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.training.optim import block_matrices

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rwkv_lab.config.schema import Config


@register("optimizer", "adam")
@dataclass
class AdamConfig(OptimizerConfig):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980). Weight decay reaches the blocks' matrices only."""

    name: str = "adam"
    betas: list[float] = setting(factory=lambda: [0.9, 0.99], low=0, below=1)  # running-average coefficients
    betas_late: list[float] | None = setting(None, low=0, below=1)  # the coefficients from betas_late_step on
    betas_late_step: int | None = setting(None, low=0)  # first update that uses betas_late
    betas_late_tokens: Count = setting(None, count=True)  # the same in training tokens before it; wins over the step
    eps: float = setting(1e-8, low=0)  # added to the denominator
    weight_decay: float = setting(0.0, low=0)  # 0.01 in the original's MHA recipes, 0 for RWKV

    def check(self) -> None:
        for key in ("betas", "betas_late"):
            betas = getattr(self, key)
            if betas is not None and len(betas) != 2:
                raise UserError(f"optimizer.{key} must be two numbers, e.g. [0.9,0.99] (got {list(betas)})")
        if (self.betas_late is None) != (self.betas_late_step is None and self.betas_late_tokens is None):
            raise UserError(
                "optimizer.betas_late goes together with optimizer.betas_late_step or optimizer.betas_late_tokens: "
                "give both or neither"
            )

    def check_run(self, run: "Config") -> None:
        """Turn a number of tokens into that of the first update behind it."""
        if self.betas_late_tokens is not None:
            self.betas_late_step = -(-whole(self.betas_late_tokens) // tokens_per_step(run))

    def build(self, parameters: "Mapping[str, nn.Parameter]") -> "list[torch.optim.Optimizer]":
        """Return one Adam in two groups: matrices that decay, and the rest."""
        import torch

        return [self.over(parameters, torch.optim.Adam)]

    def over(self, parameters: "Mapping[str, nn.Parameter]", kind: "type[torch.optim.Adam]") -> "torch.optim.Optimizer":
        """Return an optimizer of class ``kind`` with Adam's two groups."""
        decaying = block_matrices(parameters)
        groups = [
            {"params": [p for name, p in parameters.items() if name in decaying], "weight_decay": self.weight_decay},
            {"params": [p for name, p in parameters.items() if name not in decaying], "weight_decay": 0.0},
        ]
        first, second = self.betas
        return kind([g for g in groups if g["params"]], lr=0.0, betas=(first, second), eps=self.eps, fused=True)

    def set_lr(self, optimizers: "Sequence[torch.optim.Optimizer]", step: int, lr: float) -> None:
        """Put rate and betas of update ``step`` into every group."""
        super().set_lr(optimizers, step, lr)
        late = self.betas_late_step is not None and step >= self.betas_late_step
        betas = tuple(self.betas_late if late and self.betas_late else self.betas)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["betas"] = betas

    def state_bytes(self, parameters: "Mapping[str, nn.Parameter]") -> int:
        """Return the bytes of the two running averages."""
        return sum(2 * 4 * parameter.numel() for parameter in parameters.values())


@register("optimizer", "adamw")
@dataclass
class AdamWConfig(AdamConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    name: str = "adamw"

    def build(self, parameters: "Mapping[str, nn.Parameter]") -> "list[torch.optim.Optimizer]":
        """Return one AdamW in two groups, as Adam's."""
        import torch

        return [self.over(parameters, torch.optim.AdamW)]
