"""The sublayers of RWKV v2, v3 and v4: a time mix over the WKV scan and a squared-ReLU channel mix.

The three differ in the constants of the scan, in how learned token shifts are shared, and in initialisation; those
stand in their own files.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_lab.models import init
from rwkv_lab.models.blocks.tricks import TokenShift
from rwkv_lab.models.config import ScanConfig
from rwkv_lab.models.lm import LM, Block
from rwkv_lab.ops import wkv

# initial scales of the linear layers: a zero output keeps every sublayer silent at first, and zero key and receptance
# make a time mix start as a plain decaying average
SCALES = {
    "att.key": 0.0,
    "att.receptance": 0.0,
    "att.output": 0.0,
    "ffn.value": 0.0,
    "ffn.receptance": 0.0,
    "head": 0.5,
    "head_qk.q": 0.0,
    "head_qk.k": 0.1,
}


class TimeMix(nn.Module):
    """output( sigmoid(r) * wkv ), wkv_t an average of past v weighted by e^k, decaying per channel.

        wkv_t = (sum_{u<t} e^{(t-1-u) w + k_u} v_u + e^{time_first + k_t} v_t) / (the same with v = 1, plus den_eps)

    with w = -exp(time_decay) and every k cut off at k_max (Peng et al. 2023, RWKV).
    """

    def __init__(self, config: ScanConfig, shared_shift: bool, den_eps: float, k_max: float | None, backend: str):
        super().__init__()
        C = config.n_embd
        self.den_eps = den_eps
        self.k_max = k_max
        self.backend = backend
        self.shift = TokenShift(config.token_shift, C, "kvr", shared_shift)
        self.time_decay = nn.Parameter(torch.empty(C))
        self.time_first = nn.Parameter(torch.empty(C))
        self.key = nn.Linear(C, C, bias=False)
        self.value = nn.Linear(C, C, bias=False)
        self.receptance = nn.Linear(C, C, bias=False)
        self.output = nn.Linear(C, C, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B,T,C] after (the input before it [B,C], scan sums [B,3,C]) -> y [B,T,C] and that state after x."""
        last, sums = (None, None) if state is None else state
        xk, xv, xr = self.shift(x, last)
        k, v, r = self.key(xk), self.value(xv), self.receptance(xr)  # [B,T,C]
        exact = torch.promote_types(self.time_decay.dtype, torch.float32)
        w, u = -torch.exp(self.time_decay.to(exact)), self.time_first.to(exact)  # [C]
        y, sums = wkv(w, u, k, v, sums, self.den_eps, self.k_max, backend=self.backend)
        return self.output(torch.sigmoid(r) * y), (x[:, -1], sums)


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


class ChannelMix(nn.Module):
    """sigmoid(receptance(x_r)) * value( relu(key(x_k))^2 ), four times as wide inside."""

    def __init__(self, config: ScanConfig, shared_shift: bool):
        super().__init__()
        C = config.n_embd
        self.shift = TokenShift(config.token_shift, C, "kr", shared_shift)
        self.key = nn.Linear(C, 4 * C, bias=False)
        self.receptance = nn.Linear(C, C, bias=False)
        self.value = nn.Linear(4 * C, C, bias=False)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [B,T,C] after the input before it [B,C] -> y [B,T,C] and the last input."""
        xk, xr = self.shift(x, state)
        hidden = SquaredReLU.apply(self.key(xk))  # [B,T,4C]
        return torch.sigmoid(self.receptance(xr)) * self.value(hidden), x[:, -1]


def make_blocks(
    config: ScanConfig, *, shared_shift: bool, den_eps: float, k_max: float | None, backend: str
) -> list[Block]:
    """One block a layer; with ffn_pre the first has a channel mix in place of its time mix."""

    def att(layer: int) -> nn.Module:
        if layer == 0 and config.ffn_pre:
            return ChannelMix(config, shared_shift)
        return TimeMix(config, shared_shift, den_eps, k_max, backend)

    return [Block(config, l, att(l), ChannelMix(config, shared_shift)) for l in range(config.n_layer)]


def curved_time_vectors(model: LM) -> None:
    """time_decay and time_first of v3 and v4.

    time_decay[i] = -5 + 8 (i/(C-1))^(0.7 + 1.3 l/(L-1)): from forgetting 0.7 % a step to forgetting all, in deeper
    layers with more of the slow channels; time_first[i] = ln 0.3 + 0.5 ((i+1) mod 3 - 1).
    """
    C, L = model.config.n_embd, model.config.n_layer
    for layer, block in enumerate(model.blocks):
        if isinstance(block.att, TimeMix):
            power = 0.7 + 1.3 * init.ratio(layer, L - 1)
            block.att.time_decay.copy_(-5.0 + 8.0 * init.channel_ramp(C) ** power)
            block.att.time_first.copy_(math.log(0.3) + 0.5 * ((torch.arange(C) + 1) % 3 - 1))


def mixing_flops(config: ScanConfig) -> float:
    """Forward FLOPs per token outside the linear layers: the scan, about 12 a channel and layer."""
    return 12.0 * config.n_embd * (config.n_layer - config.ffn_pre)
