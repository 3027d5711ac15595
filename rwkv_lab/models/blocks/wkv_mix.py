"""The time mix of RWKV v2, v3 and v4: an average of the past with a decay per channel, by the WKV scan."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rwkv_lab.config.model_fields import Shift
from rwkv_lab.models.blocks.token_shift import TokenShift
from rwkv_lab.ops import wkv


class WKVState(NamedTuple):
    """State of a WKV mix."""

    last: Tensor  # [B,C] input of the last token
    sums: Tensor  # [B,3,C] numerator a and denominator b, both times e^-p, and p


class WKVMix(nn.Module):
    """output( sigmoid(r) * wkv ), wkv_t an average of past v weighted by e^k, decaying per channel.

        wkv_t = (sum_{u<t} e^{(t-1-u) w + k_u} v_u + e^{time_first + k_t} v_t) / (the same with v = 1, plus den_eps)

    with w = -exp(time_decay) and every k cut off at k_max (Peng et al. 2023, RWKV). Not ``causal``: plus the same scan
    from the last token to the first, by the same parameters.
    """

    memory = "constant"

    def __init__(
        self,
        n_embd: int,
        shift: Shift | str,
        *,
        shared_shift: bool = False,
        den_eps: float = 0.0,
        k_max: float | None = None,
        backend: str = "auto",
        causal: bool = True,
    ):
        super().__init__()
        self.causal = causal
        self.den_eps = den_eps
        self.k_max = k_max
        self.backend = backend
        self.shift = TokenShift(shift, n_embd, "kvr", shared_shift)
        self.time_decay = nn.Parameter(torch.empty(n_embd))
        self.time_first = nn.Parameter(torch.empty(n_embd))
        self.key = nn.Linear(n_embd, n_embd, bias=False)
        self.value = nn.Linear(n_embd, n_embd, bias=False)
        self.receptance = nn.Linear(n_embd, n_embd, bias=False)
        self.output = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, state: WKVState | None) -> tuple[Tensor, WKVState]:
        """x [B,T,C] -> [B,T,C]."""
        last, sums = (None, None) if state is None else state
        xk, xv, xr = self.shift(x, last)
        k, v, r = self.key(xk), self.value(xv), self.receptance(xr)  # [B,T,C]
        exact = torch.promote_types(self.time_decay.dtype, torch.float32)
        w, u = -torch.exp(self.time_decay.to(exact)), self.time_first.to(exact)  # [C]
        y, sums = self.scan(w, u, k, v, sums)
        if not self.causal:
            y = y + self.scan(w, u, k.flip(1), v.flip(1), None)[0].flip(1)
        return self.output(torch.sigmoid(r) * y), WKVState(x[:, -1], sums)

    def scan(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor]:
        """wkv_t for w, u [C] and k, v [B,T,C] after sums [B,3,C] -> [B,T,C] and the sums after it."""
        return wkv(w, u, k, v, sums, self.den_eps, self.k_max, backend=self.backend)

    def embedding(self, state: WKVState) -> tuple[Tensor, Tensor]:
        """Return the last input [B,C] and a/b [B,C], the average of the values as the next token would weight them."""
        return state.last, state.sums[:, 0] / state.sums[:, 1]
