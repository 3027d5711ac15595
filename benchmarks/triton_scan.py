"""The forward scan as one would write it in Triton: a program per sequence and block of channels walks all of time."""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 32


@triton.jit
def _scan(w_ptr, u_ptr, k_ptr, v_ptr, y_ptr, T, C, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < C
    w = tl.load(w_ptr + c, mask=inside, other=0.0)
    u = tl.load(u_ptr + c, mask=inside, other=0.0)
    a = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    p = tl.full([BLOCK], -1e30, tl.float32)
    at = n * T * C + c
    for _ in range(T):
        k = tl.load(k_ptr + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
        q = tl.maximum(p, u + k)
        past = tl.exp(p - q)
        present = tl.exp(u + k - q)
        y = (past * a + present * v) / (past * b + present)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
        q = tl.maximum(p + w, k)
        past = tl.exp(p + w - q)
        present = tl.exp(k - q)
        a = past * a + present * v
        b = past * b + present
        p = q
        at += C


def wkv_triton(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y [B,T,C] of the scan for w, u [C] and k, v [B,T,C], from no state."""
    B, T, C = k.shape
    y = torch.empty_like(k)
    _scan[(B, triton.cdiv(C, CHANNELS))](w, u, k, v, y, T, C, BLOCK=CHANNELS, num_warps=1)
    return y
