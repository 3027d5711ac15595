"""Time weights of RWKV v1 and MHA_pro: W[h,t,u] = w[h, L-1-(t-u)] alpha[h,u] beta[h,t] for u <= t, else 0.

Toeplitz between the two per-position factors, which are therefore folded into what is mixed and into the result. Time
is halved until the pieces are short, which are mixed by a matrix product; what the first half of a piece gives to the
second goes by a matrix product too, or by FFT where it is long. One FFT over all of time would be cheaper still, but
its rounding errors, relative to the largest value anywhere, would leak the future into the past.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Where both ways take equally long on a CPU core with AVX-512: a piece halved or whole, a half by product or by FFT.
LONGEST_PIECE = 64
LONGEST_PRODUCT = 256


def toeplitz_block(s: Tensor) -> Tensor:
    """[H,m,m] with entries s[m-1+t-u] at (t,u), from s [H,2m-1]."""
    return s.unfold(1, (s.shape[1] + 1) // 2, 1).flip(2)


def diagonal_sums(G: Tensor) -> Tensor:
    """The adjoint of `toeplitz_block`: [H,m,m] to [H,2m-1], each diagonal summed."""
    H, m, _ = G.shape
    # rows one number shorter than they are wide push each row one column to the right of the one above
    return F.pad(G.flip(2), (0, m)).reshape(H, -1)[:, : m * (2 * m - 1)].view(H, m, 2 * m - 1).sum(1)


def toeplitz_weights(w: Tensor, alpha: Tensor, beta: Tensor, T: int) -> Tensor:
    """The materialised W [H,T,T] from w [H,L], its last entry at distance 0, alpha [H,1,L], beta [H,L,1], T <= L."""
    by_distance = w[:, w.shape[1] - T :].flip(1)
    return toeplitz_block(F.pad(by_distance, (T - 1, 0))) * alpha[:, :, :T] * beta[:, :T]


def toeplitz_weights_both(w: Tensor, alpha: Tensor, beta: Tensor, T: int) -> Tensor:
    """W [H,T,T] of all pairs, w[h,L-1-|t-u|] alpha[h,u] beta[h,t]: the curve of the past for the future too."""
    by_distance = w[:, w.shape[1] - T :].flip(1)
    around = torch.cat((by_distance[:, 1:].flip(1), by_distance), dim=1)  # [H,2T-1]
    return toeplitz_block(around) * alpha[:, :, :T] * beta[:, :T]


def toeplitz_mix(
    w: Tensor,
    alpha: Tensor,
    beta: Tensor,
    x: Tensor,
    longest_piece: int = LONGEST_PIECE,
    longest_product: int = LONGEST_PRODUCT,
) -> Tensor:
    """y[b,t,h] = sum_u W[h,t,u] x[b,u,h]: x [B,T,H,S] to [B,T,H,S], w [H,L], alpha [H,1,L], beta [H,L,1], T <= L.

    Pieces longer than `longest_piece` steps are halved, halves longer than `longest_product` mixed by FFT.
    Differentiable in every tensor. Computed in float32 (float64 for float64 x) also under autocast: x holds values of
    e^k, which half precision does not span; y has the type of x.
    """
    T = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    halvings = 0
    while -(-T >> halvings) > longest_piece:
        halvings += 1
    padding = (-(-T >> halvings) << halvings) - T  # to a whole number of shortest pieces
    with torch.autocast(x.device.type, enabled=False):
        by_distance = F.pad(w[:, w.shape[1] - T :].to(dtype).flip(1), (0, padding))
        by_source, by_target = alpha[:, 0, :T].to(dtype), beta[:, :T, 0].to(dtype)
        return TimeMix.apply(by_distance, by_source, by_target, x.to(dtype), halvings, longest_product).to(x.dtype)


class TimeMix(torch.autograd.Function):
    """y[b,t,h] = beta[h,t] sum_{u<=t} w[h,t-u] alpha[h,u] x[b,u,h] for x [B,T,H,S], alpha, beta [H,T], w by distance.

    w [H,T'], T' >= T divisible by 2^halvings. One node of the graph, because most of its time goes to moving x.
    """

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, alpha: Tensor, beta: Tensor, x: Tensor, halvings: int, longest_product: int
    ) -> Tensor:
        columns = to_columns(x, alpha, w.shape[1])
        mixed = causal_product(w, columns, halvings, longest_product)
        ctx.save_for_backward(w, alpha, beta, x, columns, mixed)
        ctx.halvings, ctx.longest_product = halvings, longest_product
        return from_columns(mixed, beta, x)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        w, alpha, beta, x, columns, mixed = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            g_mixed = to_columns(gy, beta, w.shape[1])
            gw, g_columns = causal_gradients(w, columns, g_mixed, ctx.halvings, ctx.longest_product)
        g_beta = (by_head(mixed, x) * gy.permute(2, 1, 0, 3)).sum((2, 3))
        g_alpha = (by_head(g_columns, x) * x.permute(2, 1, 0, 3)).sum((2, 3))
        return gw, g_alpha, g_beta, from_columns(g_columns, alpha, x), None, None


def to_columns(x: Tensor, factor: Tensor, length: int) -> Tensor:
    """x [B,T,H,S] times factor [H,T] as [H,length,B*S], zeros after T."""
    B, T, H, S = x.shape
    columns = x.new_empty(H, length, B * S)
    product_into(by_head(columns, x), x.permute(2, 1, 0, 3), factor[:, :, None, None])
    columns[:, T:] = 0
    return columns


def by_head(columns: Tensor, x: Tensor) -> Tensor:
    """columns [H,T',B*S] as [H,T,B,S], with the sizes of x [B,T,H,S]."""
    B, T, _, S = x.shape
    return columns[:, :T].unflatten(2, (B, S))


def from_columns(columns: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    """columns [H,T',B*S] times factor [H,T] in the layout of x [B,T,H,S]."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    product_into(y.permute(2, 1, 0, 3), by_head(columns, x), factor[:, :, None, None])
    return y


def product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Write a * b into the view ``out``; torch.compile, which knows no such output, fuses the copy."""
    if torch.compiler.is_compiling():
        out.copy_(a * b)
    else:
        torch.mul(a, b, out=out)


def causal_product(w: Tensor, x: Tensor, halvings: int, longest_product: int) -> Tensor:
    """y[h,t] = sum_{u<=t} w[h,t-u] x[h,u] for x [H,T,N], w [H,T] by distance, T divisible by 2^halvings."""
    T = x.shape[1]
    piece = T >> halvings
    y = by_product(F.pad(w[:, :piece], (piece - 1, 0)), pieces(x, piece)).flatten(1, 2)
    for m in halves(T, halvings):
        give = by_product if m <= longest_product else by_fft
        second_halves(y, m).add_(give(w[:, 1 : 2 * m], first_halves(x, m)))
    return y


def causal_gradients(w: Tensor, x: Tensor, gy: Tensor, halvings: int, longest_product: int) -> tuple[Tensor, Tensor]:
    """Those of w and x in `causal_product`."""
    T = x.shape[1]
    piece = T >> halvings
    gs, gx = product_gradients(F.pad(w[:, :piece], (piece - 1, 0)), pieces(x, piece), pieces(gy, piece))
    gw, gx = F.pad(gs[:, piece - 1 :], (0, T - piece)), gx.flatten(1, 2)
    for m in halves(T, halvings):
        gradients = product_gradients if m <= longest_product else fft_gradients
        gs, given = gradients(w[:, 1 : 2 * m], first_halves(x, m), second_halves(gy, m))
        gw[:, 1 : 2 * m] += gs
        first_halves(gx, m).add_(given)
    return gw, gx


def halves(T: int, halvings: int) -> list[int]:
    """Lengths of the halves of T steps halved so many times, the longest first."""
    return [T >> (i + 1) for i in range(halvings)]


def pieces(x: Tensor, m: int) -> Tensor:
    """x [H,T,N] as [H,T/m,m,N]."""
    return x.unflatten(1, (-1, m))


def first_halves(x: Tensor, m: int) -> Tensor:
    """[H,T/2m,m,N]: of every 2m steps the first m."""
    return x.unflatten(1, (-1, 2, m))[:, :, 0]


def second_halves(x: Tensor, m: int) -> Tensor:
    """[H,T/2m,m,N]: of every 2m steps the last m."""
    return x.unflatten(1, (-1, 2, m))[:, :, 1]


def by_product(s: Tensor, x: Tensor) -> Tensor:
    """y[h,p,t] = sum_u s[h,m-1+t-u] x[h,p,u] for x [H,P,m,N], s [H,2m-1]."""
    return toeplitz_block(s)[:, None] @ x


def product_gradients(s: Tensor, x: Tensor, gy: Tensor) -> tuple[Tensor, Tensor]:
    """Those of s and x in `by_product`."""
    return diagonal_sums((gy @ x.mT).sum(1)), toeplitz_block(s).mT[:, None] @ gy


def by_fft(s: Tensor, x: Tensor) -> Tensor:
    """`by_product` as a circular convolution of length 2m, whose last m results are left out."""
    m = x.shape[2]
    return torch.fft.irfft(spectrum(x) * kernel_spectrum(s), n=2 * m, dim=2)[:, :, :m]


def fft_gradients(s: Tensor, x: Tensor, gy: Tensor) -> tuple[Tensor, Tensor]:
    """Those of s and x in `by_fft`; torch's own go through complex transforms of full length."""
    m = x.shape[2]
    g = spectrum(gy)
    gs = torch.fft.irfft((g * spectrum(x).conj()).sum((1, 3)), n=2 * m).roll(m - 1, 1)[:, :-1]
    return gs, torch.fft.irfft(g * kernel_spectrum(s).conj(), n=2 * m, dim=2)[:, :, :m]


def spectrum(x: Tensor) -> Tensor:
    """x [H,P,m,N] with m zeros after it, over frequencies: [H,P,m+1,N]."""
    return torch.fft.rfft(x, n=2 * x.shape[2], dim=2)


def kernel_spectrum(s: Tensor) -> Tensor:
    """s [H,2m-1] with distance 0 in front and what reaches back wrapped to the end, over frequencies: [H,1,m+1,1]."""
    m = (s.shape[1] + 1) // 2
    return torch.fft.rfft(F.pad(s, (0, 1)).roll(1 - m, 1))[:, None, :, None]
