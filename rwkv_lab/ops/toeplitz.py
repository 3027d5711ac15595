"""Time weights of RWKV v1 and MHA_pro: W[h,t,u] = w[h, L-1-(t-u)] alpha[h,u] beta[h,t] for u <= t, else 0.

Toeplitz between the two per-position factors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def toeplitz(w: Tensor, T: int) -> Tensor:
    """w [H,L], its last entry belonging to distance 0, laid out as lower-triangular [H,T,T], T <= L."""
    H, L = w.shape
    row = F.pad(w[:, L - T :], (0, T))  # [H,2T]: T distances from far to near, then the zeros of the future
    return row.repeat(1, T)[:, :-T].view(H, T, 2 * T - 1)[:, :, T - 1 :]


def toeplitz_weights(w: Tensor, alpha: Tensor, beta: Tensor, T: int) -> Tensor:
    """The materialised W [H,T,T] from w [H,L], alpha [H,1,L], beta [H,L,1], T <= L."""
    return toeplitz(w, T) * alpha[:, :, :T] * beta[:, :T]


def toeplitz_mix(w: Tensor, alpha: Tensor, beta: Tensor, x: Tensor) -> Tensor:
    """y[b,t,h] = sum_u W[h,t,u] x[b,u,h]: x [B,T,H,S] to [B,T,H,S], w [H,L], alpha [H,1,L], beta [H,L,1], T <= L."""
    return torch.einsum("htu,buhs->bths", toeplitz_weights(w, alpha, beta, x.shape[1]), x)
