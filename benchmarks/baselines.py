"""The other ways to compute the scan and the time weights that benchmarks time ours against, in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_lab.models.blocks.toeplitz_mix import ToeplitzMix
from rwkv_lab.models.blocks.wkv_mix import WKVMix
from rwkv_lab.models.lm import LM
from rwkv_lab.ops.reference import wkv_reference
from rwkv_lab.ops.toeplitz import toeplitz_weights

EPS, K_MAX = 1e-8, 60.0


def curve(w: Tensor, u: Tensor, T: int) -> Tensor:
    """The weight of a token by age, [C,T]: e^u at age 0, e^{(age-1) w} before."""
    ages = torch.arange(T - 1, device=w.device, dtype=w.dtype)
    return torch.cat((u[:, None], w[:, None] * ages), dim=1).exp()


def by_convolution(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As the first implementations of RWKV-2 and RWKV-3 on a CPU: two depthwise convolutions over all of time."""
    T, C = k.shape[1:]
    kernel = curve(w, u, T).flip(1).unsqueeze(1).to(k.dtype)  # [C,1,T]
    e = k.clamp(max=K_MAX).exp()

    def mix(x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x.mT, (T - 1, 0)), kernel, groups=C).mT

    return mix(e * v) / (mix(e) + EPS)


def by_fft(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same convolutions through the frequency domain."""
    T = k.shape[1]
    kernel = torch.fft.rfft(curve(w, u, T), n=2 * T)
    e = k.clamp(max=K_MAX).exp()

    def mix(x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x.mT, n=2 * T) * kernel, n=2 * T)[..., :T].mT

    return mix(e * v) / (mix(e) + EPS)


def by_loop(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One step at a time over `unbind`."""
    return wkv_reference(w, u, k, v, None, EPS, K_MAX)[0]


def materialised_mix(w: Tensor, alpha: Tensor, beta: Tensor, x: Tensor) -> Tensor:
    """`toeplitz_mix` through the whole matrix of time weights."""
    return torch.einsum("htu,buhs->bths", toeplitz_weights(w, alpha, beta, x.shape[1]), x)


class ConvolutionMix(WKVMix):
    """The time mix of v2, v3 and v4 by convolution; for whole sequences only."""

    def scan(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor]:
        return by_convolution(w, u, k, v), w.new_empty(0)


class MaterialisedMix(ToeplitzMix):
    """The time mix of v1 through the whole matrix of time weights."""

    def mix(self, ev: Tensor) -> Tensor:
        return materialised_mix(self.time_w, self.time_alpha, self.time_beta, ev)


EARLIER: dict[type, type] = {WKVMix: ConvolutionMix, ToeplitzMix: MaterialisedMix}


def take_earlier_route(model: LM) -> bool:
    """Lets the model compute its operation as it was done before there was a kernel; False if it has none of those."""
    mixes = [module for module in model.modules() if type(module) in EARLIER]
    for module in mixes:
        module.__class__ = EARLIER[type(module)]
    return bool(mixes)
