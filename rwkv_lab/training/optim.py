"""Adam with the decay groups and late betas of the RWKV recipes."""

import torch
from torch import nn

from rwkv_lab import models
from rwkv_lab.config.schema import OptimizerConfig


def build(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019) over ``model``'s parameters, in two groups.

    Weight decay reaches linear weights only, never biases, ``time_*`` or ``head*`` (``models.decay_parameters``).
    """
    decaying = models.decay_parameters(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if name in decaying], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if name not in decaying], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    kept = [group for group in groups if group["params"]]
    return kind(kept, lr=0.0, betas=tuple(config.betas), eps=config.eps, fused=True)  # type: ignore[arg-type]


def set_step(optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, lr: float) -> None:
    """Puts the rate and the betas of update ``step`` into every group."""
    late = config.betas_late_step is not None and step >= config.betas_late_step
    betas = tuple(config.betas_late if late and config.betas_late else config.betas)
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["betas"] = betas
