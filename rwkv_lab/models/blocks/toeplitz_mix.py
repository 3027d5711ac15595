"""Mixes with v1's time weights W[h,t,u] = w[h,L-1-(t-u)] alpha[h,u] beta[h,t]: RWKV v1's own and MHA_pro's."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_lab.config.model_fields import Shift
from rwkv_lab.models.blocks.attention import Attention, AttentionState, TinyAttention, causal_window, merge_heads
from rwkv_lab.models.blocks.token_shift import TokenShift
from rwkv_lab.ops.toeplitz import toeplitz_mix, toeplitz_weights, toeplitz_weights_both

K_MIN, K_MAX = -60.0, 30.0  # keeps e^k and its running sum within float32


class ToeplitzState(NamedTuple):
    """State of RWKV v1's time mix."""

    last: Tensor  # [B,C] input of the last token
    ev: Tensor  # [B,P,H,S] e^k v of the P tokens read
    e_sum: Tensor  # [B,A] sum of e^k
    tiny_k: Tensor  # [B,h,P,s] keys of the tiny attention; [B,0] without one
    tiny_v: Tensor


class ToeplitzMix(nn.Module):
    """gamma[t] ( output( sigmoid(r) y_t / n_t ) + tiny attention ), e = e^k cut off at both ends,

    y_t = sum_{u<=t} W[h,t,u] e_u v_u with W[h,t,u] = w[h, ctx_len-1-(t-u)] alpha[h,u] beta[h,t], n_t = sum_{u<=t} e_u;
    not ``causal``: both sums over all u, with |t-u|.
    """

    memory = "growing"

    def __init__(
        self,
        n_embd: int,
        width: int,
        n_head: int,
        ctx_len: int,
        shift: Shift | str,
        tiny_width: int = 0,
        tiny_heads: int = 1,
        causal: bool = True,
    ):
        super().__init__()
        self.n_head = n_head
        self.causal = causal
        self.shift = TokenShift(shift, n_embd, "kvr")
        self.time_w = nn.Parameter(torch.empty(n_head, ctx_len))  # the last entry belongs to distance 0
        self.time_alpha = nn.Parameter(torch.empty(n_head, 1, ctx_len))
        self.time_beta = nn.Parameter(torch.empty(n_head, ctx_len, 1))
        self.time_gamma = nn.Parameter(torch.empty(ctx_len, 1))
        self.key = nn.Linear(n_embd, width)
        self.value = nn.Linear(n_embd, width)
        self.receptance = nn.Linear(n_embd, width)
        self.output = nn.Linear(width, n_embd)
        self.tiny_att = TinyAttention(n_embd, tiny_width, tiny_heads, causal) if tiny_width else None

    def forward(self, x: Tensor, state: ToeplitzState | None) -> tuple[Tensor, ToeplitzState]:
        """x [B,T,C] -> [B,T,C]; at most ctx_len tokens with those before."""
        xk, xv, xr = self.shift(x, None if state is None else state.last)
        k, v, r = self.key(xk), self.value(xv), self.receptance(xr)  # [B,T,A]
        # sums of e^k span 40 decades, more than half precision resolves
        e = torch.exp(k.to(torch.promote_types(k.dtype, torch.float32)).clamp(K_MIN, K_MAX))
        ev = (e * v).unflatten(-1, (self.n_head, -1))  # [B,T,H,S]
        n = e.cumsum(dim=1) if self.causal else e.sum(dim=1, keepdim=True)
        factors = (self.time_w, self.time_alpha, self.time_beta)
        past = 0
        if state is None:
            y = self.mix(ev)
        else:
            past = state.ev.shape[1]
            n = n + state.e_sum.unsqueeze(1)
            ev = torch.cat((state.ev, ev), dim=1)
            with torch.autocast(x.device.type, enabled=False):
                y = torch.einsum("htu,buhs->bths", toeplitz_rows(*factors, past, x.shape[1]).to(ev.dtype), ev)
        out = self.output((torch.sigmoid(r) * y.flatten(2) / n).to(r.dtype))
        tiny = (x.new_empty(x.shape[0], 0),) * 2
        if self.tiny_att is not None:
            beside, tiny = self.tiny_att(xv, None if state is None else (state.tiny_k, state.tiny_v))
            out = out + beside
        return out * self.time_gamma[past : past + x.shape[1]], ToeplitzState(x[:, -1], ev, n[:, -1], *tiny)

    def mix(self, ev: Tensor) -> Tensor:
        """sum_u W[h,t,u] ev_u for ev [B,T,H,S] -> [B,T,H,S]."""
        if not self.causal:
            with torch.autocast(ev.device.type, enabled=False):
                W = toeplitz_weights_both(self.time_w, self.time_alpha, self.time_beta, ev.shape[1])
                return torch.einsum("htu,buhs->bths", W.to(ev.dtype), ev)
        return toeplitz_mix(self.time_w, self.time_alpha, self.time_beta, ev)


class WeightedAttention(Attention):
    """gamma[t] output( a' v ), a'_g = sum_h M[g,h] softmax(q k^T / sqrt(S))_h W_h, W as in v1, not renormalised."""

    def __init__(self, n_embd: int, width: int, n_head: int, ctx_len: int, shift: Shift | str, causal: bool = True):
        super().__init__(n_embd, width, n_head, shift, causal)
        self.time_w = nn.Parameter(torch.empty(n_head, ctx_len))  # the last entry belongs to distance 0
        self.time_alpha = nn.Parameter(torch.empty(n_head, 1, ctx_len))
        self.time_beta = nn.Parameter(torch.empty(n_head, ctx_len, 1))
        self.time_gamma = nn.Parameter(torch.empty(ctx_len, 1))
        self.head_mix = nn.Parameter(torch.empty(n_head, n_head, 1, 1))  # M, a 1x1 convolution

    def forward(self, x: Tensor, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        """x [B,T,C] -> [B,T,C]; at most ctx_len tokens with those before."""
        T = x.shape[1]
        q, state = self.heads(x, state)  # [B,H,T,S]
        k, v = state.k, state.v  # [B,H,U,S]
        U = k.shape[2]
        future = torch.zeros(T, U, dtype=q.dtype, device=x.device)
        if self.causal:
            future.masked_fill_(~causal_window(T, U, U, x.device), -torch.inf)
        scores = torch.baddbmm(
            future, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=1.0 / math.sqrt(q.shape[-1])
        )  # [B*H,T,U]
        # Under autocast the softmax gives float32, and [B,H,T,U] is what this model's time goes to.
        att = torch.softmax(scores, dim=-1).to(v.dtype).unflatten(0, (-1, self.n_head))  # [B,H,T,U]
        factors = (self.time_w, self.time_alpha, self.time_beta)
        whole = toeplitz_weights if self.causal else toeplitz_weights_both
        weights = whole(*factors, T) if T == U else toeplitz_rows(*factors, U - T, T)
        att = att * weights.to(v.dtype)
        att = F.conv2d(att, self.head_mix)  # a convolution runs several times as fast as M @ att
        return self.output(merge_heads(att @ v)) * self.time_gamma[U - T : U], state


def toeplitz_rows(w: Tensor, alpha: Tensor, beta: Tensor, past: int, T: int) -> Tensor:
    """W [H,T,past+T] of the T positions after ``past``, from w [H,L], alpha [H,1,L], beta [H,L,1], past + T <= L."""
    U = past + T
    distance = torch.arange(past, U, device=w.device).unsqueeze(1) - torch.arange(U, device=w.device)  # [T,U]
    rows = w.flip(1)[:, distance.clamp(min=0)].masked_fill(distance < 0, 0.0)  # [H,T,U]
    return rows * alpha[:, :, :U] * beta[:, past:U]
