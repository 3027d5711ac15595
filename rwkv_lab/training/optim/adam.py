"""Adam and AdamW with the decay groups and late betas of the RWKV recipes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import OptimizerConfig
from rwkv_lab.config.registry import register

if TYPE_CHECKING:
    import torch

    from rwkv_lab.models.lm import LM


@register("optimizer", "adam")
@dataclass
class AdamConfig(OptimizerConfig):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980). Weight decay, where asked, reaches linear weights only."""

    name: str = "adam"
    betas: list[float] = setting(factory=lambda: [0.9, 0.99], low=0, below=1)  # running-average coefficients
    betas_late: list[float] | None = setting(None, low=0, below=1)  # the coefficients from betas_late_step on
    betas_late_step: int | None = setting(None, low=0)  # first update that uses betas_late
    eps: float = setting(1e-8, low=0)  # added to the denominator
    weight_decay: float = setting(0.0, low=0)  # 0.01 in the original's MHA recipes, 0 for RWKV

    def check(self) -> None:
        for key in ("betas", "betas_late"):
            betas = getattr(self, key)
            if betas is not None and len(betas) != 2:
                raise UserError(f"optimizer.{key} must be two numbers, e.g. [0.9,0.99] (got {list(betas)})")
        if (self.betas_late is None) != (self.betas_late_step is None):
            raise UserError("optimizer.betas_late and optimizer.betas_late_step go together: give both or neither")

    def build(self, model: "LM") -> "torch.optim.Optimizer":
        """Return Adam in two groups: weights that decay, and the rest (``models.lm.decay_parameters``)."""
        import torch

        return self.over(model, torch.optim.Adam)

    def over(self, model: "LM", kind: "type[torch.optim.Adam]") -> "torch.optim.Optimizer":
        """Return ``kind`` over the decaying weights and the rest of ``model``'s parameters."""
        from rwkv_lab.models.lm import decay_parameters

        decaying = decay_parameters(model)
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for name, p in named if name in decaying], "weight_decay": self.weight_decay},
            {"params": [p for name, p in named if name not in decaying], "weight_decay": 0.0},
        ]
        first, second = self.betas
        return kind([g for g in groups if g["params"]], lr=0.0, betas=(first, second), eps=self.eps, fused=True)

    def set_step(self, optimizer: "torch.optim.Optimizer", step: int, lr: float) -> None:
        late = self.betas_late_step is not None and step >= self.betas_late_step
        betas = tuple(self.betas_late if late and self.betas_late else self.betas)
        for group in optimizer.param_groups:
            group["lr"] = lr
            group["betas"] = betas

    def state_bytes(self, parameters: int) -> float:
        """Return the bytes of the two running averages."""
        return 8.0 * parameters


@register("optimizer", "adamw")
@dataclass
class AdamWConfig(AdamConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    name: str = "adamw"

    def build(self, model: "LM") -> "torch.optim.Optimizer":
        """Return AdamW in two groups, as Adam's."""
        import torch

        return self.over(model, torch.optim.AdamW)
