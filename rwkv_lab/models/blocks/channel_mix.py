"""Channel mixes: squared ReLU (RWKV v2 to v4), gated mish (v1, MHA_pro) and GeGLU (MHA)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_lab.config.model_fields import Shift
from rwkv_lab.models.blocks.token_shift import TokenShift
from rwkv_lab.models.state import ShiftState


def _last(state: ShiftState | None) -> Tensor | None:
    return None if state is None else state.last


class ChannelMix(nn.Module):
    """sigmoid(receptance(x_r)) * value( relu(key(x_k))^2 ), four times as wide inside, no biases."""

    memory = "constant"

    def __init__(self, n_embd: int, shift: Shift | str, shared_shift: bool = False):
        super().__init__()
        self.shift = TokenShift(shift, n_embd, "kr", shared_shift)
        self.key = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.receptance = nn.Linear(n_embd, n_embd, bias=False)
        self.value = nn.Linear(4 * n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, state: ShiftState | None) -> tuple[Tensor, ShiftState]:
        """x [B,T,C] -> [B,T,C]."""
        xk, xr = self.shift(x, _last(state))
        hidden = SquaredReLU.apply(self.key(xk))  # [B,T,4C]
        return torch.sigmoid(self.receptance(xr)) * self.value(hidden), ShiftState(x[:, -1])


class GatedMish(nn.Module):
    """sigmoid(receptance(x)) * output( mish(key(x)) * value(x) ), ``width`` inside."""

    memory = "constant"

    def __init__(self, n_embd: int, width: int, shift: Shift | str):
        super().__init__()
        self.shift = TokenShift(shift, n_embd, "kvr")
        self.key = nn.Linear(n_embd, width)
        self.value = nn.Linear(n_embd, width)
        self.receptance = nn.Linear(n_embd, n_embd)
        self.output = nn.Linear(width, n_embd)

    def forward(self, x: Tensor, state: ShiftState | None) -> tuple[Tensor, ShiftState]:
        """x [B,T,C] -> [B,T,C]."""
        xk, xv, xr = self.shift(x, _last(state))
        y = torch.sigmoid(self.receptance(xr)) * self.output(F.mish(self.key(xk)) * self.value(xv))
        return y, ShiftState(x[:, -1])


class GeGLU(nn.Module):
    """output( gelu(key(x)) * value(x) ), ``width`` inside, exact (erf) gelu (Shazeer 2020, arXiv 2002.05202)."""

    memory = "constant"

    def __init__(self, n_embd: int, width: int, shift: Shift | str):
        super().__init__()
        self.shift = TokenShift(shift, n_embd, "kv")
        self.key = nn.Linear(n_embd, width)
        self.value = nn.Linear(n_embd, width)
        self.output = nn.Linear(width, n_embd)

    def forward(self, x: Tensor, state: ShiftState | None) -> tuple[Tensor, ShiftState]:
        """x [B,T,C] -> [B,T,C]."""
        xk, xv = self.shift(x, _last(state))
        return self.output(F.gelu(self.key(xk)) * self.value(xv)), ShiftState(x[:, -1])


class SquaredReLU(torch.autograd.Function):
    """relu(x)^2 (So et al. 2021, Primer), whose gradient 2 relu(x) needs no look at the sign of x again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = torch.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gy * positive).mul_(2.0)
