"""Time weights of RWKV v1 and MHA_pro: W[h,t,u] = w[h, L-1-(t-u)] alpha[h,u] beta[h,t] for u <= t, else 0.

Toeplitz between the two per-position factors, which are therefore folded into what is mixed and into the result. Short
sequences are mixed by matrix products. Long ones are halved until they are short; what the first half of a piece gives
to the second goes by FFT. One FFT over all of time would be a little cheaper, but its rounding errors, relative to the
largest value anywhere, would leak the future into the past.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# the longest piece mixed by a matrix product: where both ways take equally long on a CPU core with AVX-512
LONGEST_PRODUCT = 256


def toeplitz(w: Tensor, T: int) -> Tensor:
    """w [H,L], its last entry belonging to distance 0, laid out as lower-triangular [H,T,T], T <= L."""
    H, L = w.shape
    row = F.pad(w[:, L - T :], (0, T))  # [H,2T]: T distances from far to near, then the zeros of the future
    return row.repeat(1, T)[:, :-T].view(H, T, 2 * T - 1)[:, :, T - 1 :]


def toeplitz_weights(w: Tensor, alpha: Tensor, beta: Tensor, T: int) -> Tensor:
    """The materialised W [H,T,T] from w [H,L], alpha [H,1,L], beta [H,L,1], T <= L."""
    return toeplitz(w, T) * alpha[:, :, :T] * beta[:, :T]


def toeplitz_mix(w: Tensor, alpha: Tensor, beta: Tensor, x: Tensor, longest_product: int = LONGEST_PRODUCT) -> Tensor:
    """y[b,t,h] = sum_u W[h,t,u] x[b,u,h]: x [B,T,H,S] to [B,T,H,S], w [H,L], alpha [H,1,L], beta [H,L,1], T <= L.

    Pieces longer than `longest_product` steps are halved. Differentiable in every tensor. Computed in float32 (float64
    for float64 x) also under autocast: x holds values of e^k, which half precision does not span; y has the type of x.
    """
    B, T, H, S = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        w, alpha, beta = w.to(dtype), alpha.to(dtype), beta.to(dtype)
        scaled = x.to(dtype) * alpha[:, 0, :T].T[:, :, None]
        if longest_product >= T:
            columns = scaled.permute(2, 1, 0, 3).reshape(H, T, B * S)
            y = torch.bmm(toeplitz(w, T), columns).view(H, T, B, S).permute(2, 1, 0, 3)
        else:
            halvings = 1
            while -(-T >> halvings) > longest_product:
                halvings += 1
            padded = -(-T >> halvings) << halvings  # a whole number of shortest pieces
            by_distance = F.pad(w[:, w.shape[1] - T :].flip(1), (0, padded - T))
            rows = F.pad(scaled.permute(2, 0, 3, 1), (0, padded - T)).reshape(H, B * S, padded)
            y = halve_and_mix(by_distance, rows, halvings)[..., :T].view(H, B, S, T).permute(1, 3, 0, 2)
        return (y * beta[:, :T, 0].T[:, :, None]).to(x.dtype)


def halve_and_mix(w: Tensor, x: Tensor, halvings: int) -> Tensor:
    """y[h,n,t] = sum_{u<=t} w[h,t-u] x[h,n,u] for x [H,N,T], w [H,T] by distance, T divisible by 2^halvings."""
    H, N, T = x.shape
    if halvings == 0:
        return torch.bmm(x, toeplitz(w.flip(1), T).mT)
    half = T // 2
    halves = x.reshape(H, N, 2, half)
    y = halve_and_mix(w[:, :half], halves.reshape(H, 2 * N, half), halvings - 1).view(H, N, 2, half)
    carried = Carry.apply(w, halves[:, :, 0])
    return torch.stack((y[:, :, 0], y[:, :, 1] + carried), dim=2).view(H, N, T)


class Carry(torch.autograd.Function):
    """What a first half gives to the second: y[h,n,t] = sum_u w[h,m+t-u] x[h,n,u] for w [H,2m] by distance, x [H,N,m].

    A circular convolution of length 2m with w turned by m, of which the first m results are unaffected by the
    wrapping. Its gradients are written out because those of torch's real FFT go through complex ones of full length.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, x: Tensor) -> Tensor:
        m = x.shape[-1]
        kernel, spectrum = torch.fft.rfft(w.roll(m, dims=1))[:, None], torch.fft.rfft(x, n=2 * m)
        ctx.save_for_backward(kernel, spectrum)
        return torch.fft.irfft(spectrum * kernel, n=2 * m)[..., :m]

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, Tensor]:
        kernel, spectrum = ctx.saved_tensors
        m = gy.shape[-1]
        g = torch.fft.rfft(gy, n=2 * m)
        gw = torch.fft.irfft((g * spectrum.conj()).sum(1), n=2 * m).roll(m, dims=1)
        return gw, torch.fft.irfft(g * kernel.conj(), n=2 * m)[..., :m]
