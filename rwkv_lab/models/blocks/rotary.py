"""Rotary position embedding (Su et al. 2021) on part of each head."""

import torch
from torch import Tensor


def rotary_angles(T: int, S: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [T, d/2] of t * 10000^(-2j/d), d = S/2 rounded down to even channels of a head of S.

    In float64 for a float64 `like`, else float32; on its device.
    """
    d = 2 * (S // 4)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    frequency = 10000.0 ** (-torch.arange(0, d, 2, dtype=dtype, device=like.device) / max(d, 1))  # [d/2]
    angle = torch.outer(torch.arange(T, dtype=dtype, device=like.device), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """x [B,H,T,S]: channels j and j + d/2 of the first d turn by the angle j; the rest pass. Keeps the type of x."""
    cos, sin = angles
    half = cos.shape[-1]
    a, b, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat(((a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest), dim=-1)
