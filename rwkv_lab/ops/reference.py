"""The WKV scan in plain torch: what the kernels are tested against, and the fallback where they cannot be built.

One step over (numerator a, denominator b), both scaled by e^-p so that no exponential exceeds 1 (log-sum-exp, as in
RWKV-4: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", appendix on numerical stability).
"""

import math

import torch
from torch import Tensor

NO_HISTORY = -1e30


def empty_state(k: Tensor) -> Tensor:
    """The state before the first token, [B,3,C] = (a, b, p) for k [B,T,C]: nothing summed, log-scale -1e30."""
    state = k.new_zeros((k.shape[0], 3, k.shape[2]), dtype=accumulator(k.dtype))
    state[:, 2] = NO_HISTORY
    return state


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type sums are kept in: float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wkv_reference(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None, den_eps: float, k_max: float | None
) -> tuple[Tensor, Tensor]:
    """Step-by-step scan; shapes and meaning as in `rwkv_lab.ops.wkv`. Differentiable by autograd in every tensor.

    The log-scale q of a step cancels in the result, so it is a constant to autograd; the p of a returned state
    carries no gradient.
    """
    dtype = accumulator(k.dtype)
    w, u = w.to(dtype), u.to(dtype)
    keys, values = k.to(dtype), v.to(dtype)
    if k_max is not None:
        keys = keys.clamp(max=k_max)
    log_eps = math.log(den_eps) if den_eps > 0 else -math.inf
    if state is None:
        state = empty_state(k)
    a, b, p = state.to(dtype).unbind(1)  # [B,C] each
    outputs = []
    # unbind, not k[:, t]: the gradient of an index fills a whole [B,T,C] with zeros at every step
    for kt, vt in zip(keys.unbind(1), values.unbind(1), strict=True):
        now = u + kt
        q = torch.maximum(p, now).detach().clamp(min=log_eps)
        past, present = torch.exp(p - q), torch.exp(now - q)
        outputs.append((past * a + present * vt) / (past * b + present + torch.exp(log_eps - q)))
        decayed = p + w
        q = torch.maximum(decayed, kt).detach()
        past, present = torch.exp(decayed - q), torch.exp(kt - q)
        a, b, p = past * a + present * vt, past * b + present, q
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(values)
    return y.to(k.dtype), torch.stack((a, b, p), dim=1)
