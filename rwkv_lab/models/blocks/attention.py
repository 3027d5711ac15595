"""Softmax attention over heads: with rotary embedding (MHA), and a tiny one beside a time mix."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_lab.config.model_fields import Shift
from rwkv_lab.models.blocks.token_shift import TokenShift


class AttentionState(NamedTuple):
    """Key/value cache."""

    last: Tensor  # [B,C] input of the last token
    k: Tensor  # [B,H,P,S] rotated keys of the P tokens read
    v: Tensor  # [B,H,P,S]


class Attention(nn.Module):
    """output( softmax(q k^T / sqrt(S)) v ) per head of S channels, u <= t if ``causal`` (Vaswani et al. 2017)."""

    memory = "growing"

    def __init__(self, n_embd: int, width: int, n_head: int, shift: Shift | str, causal: bool = True):
        super().__init__()
        self.n_head = n_head
        self.causal = causal
        self.shift = TokenShift(shift, n_embd, "qkv")
        self.query = nn.Linear(n_embd, width)
        self.key = nn.Linear(n_embd, width)
        self.value = nn.Linear(n_embd, width)
        self.output = nn.Linear(width, n_embd)

    def forward(self, x: Tensor, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        """x [B,T,C] -> [B,T,C]."""
        q, state = self.heads(x, state)
        return self.output(merge_heads(attend(q, state.k, state.v, self.causal))), state

    def heads(self, x: Tensor, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        """x [B,T,C] after ``state`` -> rotated q [B,H,T,S], and the state with the keys and values of x."""
        xq, xk, xv = self.shift(x, None if state is None else state.last)
        q, k, v = (split_heads(part, self.n_head) for part in (self.query(xq), self.key(xk), self.value(xv)))
        past = 0 if state is None else state.k.shape[2]
        angles = rotary_angles(x.shape[1], q.shape[-1], q, past)
        q, k = rotate(q, angles), rotate(k, angles)
        if state is not None:
            k, v = torch.cat((state.k.to(k.dtype), k), dim=2), torch.cat((state.v.to(v.dtype), v), dim=2)
        return q, AttentionState(x[:, -1], k, v)


class TinyAttention(nn.Module):
    """Attention of a small width on the side of a time mix (Peng 2021, RWKV-LM v1)."""

    def __init__(self, n_embd: int, width: int, n_head: int, causal: bool = True):
        super().__init__()
        self.n_head = n_head
        self.causal = causal
        self.qkv = nn.Linear(n_embd, 3 * width)
        self.out = nn.Linear(width, n_embd)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B,T,C] after keys and values [B,H,P,S] each -> [B,T,C], and the cache with those of x."""
        q, k, v = (split_heads(part, self.n_head) for part in self.qkv(x).chunk(3, dim=-1))
        if cache is not None:
            k, v = torch.cat((cache[0].to(k.dtype), k), dim=2), torch.cat((cache[1].to(v.dtype), v), dim=2)
        return self.out(merge_heads(attend(q, k, v, self.causal))), (k, v)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Attention of the last T of U positions: q [B,H,T,S], k and v [B,H,U,S] -> [B,H,T,S]; not ``causal``: T = U."""
    T, U = q.shape[2], k.shape[2]
    if T == U:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    seen = None if T == 1 else causal_window(T, U, U, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def causal_window(T: int, U: int, window: int, device: torch.device) -> Tensor:
    """[T,U] true where query t, which is position U-T+t, sees position u: itself or fewer than ``window`` before it."""
    distance = torch.arange(U - T, U, device=device).unsqueeze(1) - torch.arange(U, device=device)
    return (distance >= 0) & (distance < window)


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """[B,T,H*S] -> [B,H,T,S]."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B,H,T,S] -> [B,T,H*S]."""
    return x.transpose(1, 2).flatten(2)


def rotary_angles(T: int, S: int, like: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
    """cos and sin [T, d/2] of t * 10000^(-2j/d), t from ``start``, d = S/2 rounded down to even channels of a head.

    In float64 for a float64 ``like``, else float32; on its device.
    """
    d = 2 * (S // 4)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    frequency = 10000.0 ** (-torch.arange(0, d, 2, dtype=dtype, device=like.device) / max(d, 1))  # [d/2]
    angle = torch.outer(torch.arange(start, start + T, dtype=dtype, device=like.device), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Channels j and j + d/2 of x [B,H,T,S] turned by the angle j; the others pass. Keeps the type of x."""
    cos, sin = angles
    half = cos.shape[-1]
    a, b, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat(((a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest), dim=-1)
