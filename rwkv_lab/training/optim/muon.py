"""Muon for the blocks' matrices, Adam for embeddings, vectors and the output head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import OptimizerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.training.optim import block_matrices

if TYPE_CHECKING:
    import torch
    from torch import nn


@register("optimizer", "muon")
@dataclass
class MuonConfig(OptimizerConfig):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): a matrix moves by its orthogonalised momentum."""

    name: str = "muon"
    momentum: float = setting(0.95, low=0, below=1)  # coefficient of the gradient's running average
    nesterov: bool = True  # look one update ahead, as Nesterov's momentum does
    ns_steps: int = setting(5, low=1, below=100)  # Newton-Schulz iterations that orthogonalise the momentum
    weight_decay: float = setting(0.0, low=0)  # decoupled, of the matrices
    adjust_lr: Literal["original", "match_rms_adamw"] = "match_rms_adamw"  # a matrix's rate by its shape
    adam_lr_scale: float = setting(1.0, above=0)  # Adam's rate as a multiple of the schedule's
    adam_betas: list[float] = setting(factory=lambda: [0.9, 0.99], low=0, below=1)  # Adam's coefficients
    adam_eps: float = setting(1e-8, low=0)  # added to Adam's denominator

    def check(self) -> None:
        if len(self.adam_betas) != 2:
            raise UserError(f"optimizer.adam_betas must be two numbers, e.g. [0.9,0.99] (got {self.adam_betas})")

    def build(self, parameters: "Mapping[str, nn.Parameter]") -> "list[torch.optim.Optimizer]":
        """Return Muon over the blocks' matrices and Adam over the rest.

        ``match_rms_adamw`` (Liu et al. 2025, arXiv 2502.16982) multiplies a matrix's rate by 0.2 sqrt(max(rows,
        columns)), so that a rate found for AdamW fits; ``original`` by sqrt(max(1, rows / columns)).
        """
        import torch

        matrices = block_matrices(parameters)
        rest = [parameter for name, parameter in parameters.items() if name not in matrices]
        first, second = self.adam_betas
        built: list[torch.optim.Optimizer] = []
        if matrices:
            built.append(
                torch.optim.Muon(
                    [parameters[name] for name in matrices],
                    lr=0.0,
                    weight_decay=self.weight_decay,
                    momentum=self.momentum,
                    nesterov=self.nesterov,
                    ns_steps=self.ns_steps,
                    adjust_lr_fn=self.adjust_lr,
                )
            )
        if rest:
            group = {"params": rest, "lr_scale": self.adam_lr_scale}
            built.append(torch.optim.Adam([group], lr=0.0, betas=(first, second), eps=self.adam_eps, fused=True))
        return built

    def state_bytes(self, parameters: "Mapping[str, nn.Parameter]") -> int:
        """Return the bytes of one average of each matrix and two of the rest."""
        matrices = set(block_matrices(parameters))
        return sum(4 * (1 if name in matrices else 2) * parameter.numel() for name, parameter in parameters.items())
