"""`wkv`: the linear-time scan of RWKV v2, v3 and v4, by the native kernel where there is one, else by plain torch."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rwkv_lab.config.errors import UserError
from rwkv_lab.ops import native
from rwkv_lab.ops.reference import wkv_reference

BACKENDS = ("auto", "native", "reference")


def resolve_backend(
    requested: str, device: torch.device | str, cache: Path | None = None
) -> Literal["native", "reference"]:
    """Which implementation `wkv` uses on `device` when asked for `requested` (auto, native or reference).

    The first call for a device builds the kernels, in `cache`, and tries them; if that fails, auto means reference,
    with one warning. Raises UserError for an unknown name, or for native if the kernels cannot be had.
    """
    if requested not in BACKENDS:
        raise UserError(f"ops.backend: {requested!r} is not a backend; choose one of {', '.join(BACKENDS)}")
    if requested == "reference":
        return "reference"
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return "native" if native.ready(device, requested == "native", cache) else "reference"


def uses_kernel(requested: str, device: torch.device) -> bool:
    """Return whether ``resolve_backend`` says native; a constant to torch.compile."""
    return resolve_backend(requested, device) == "native"


# All that torch.compiler.assume_constant_result does, without importing torch._dynamo, which takes a second.
uses_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def wkv(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    den_eps: float = 0.0,
    k_max: float | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Weighted average of past values with exponentially decaying weights and a bonus for the current token.

        y_t = (a_{t-1} + e^{u+k_t} v_t) / (b_{t-1} + e^{u+k_t} + den_eps)
        a_t = e^w a_{t-1} + e^{k_t} v_t,   b_t the same with v = 1,   k_t cut off at k_max

    w, u   [C] float32: log-decay per step (-exp(time_decay), below 0) and bonus (time_first), natural log
    k, v   [B,T,C] of one type: float32, bfloat16, float16, or float64 (then w, u too); CPU or CUDA
    state  [B,3,C] = (a, b, p): sums before the first token, divided by e^p; None for none
    returns y [B,T,C] in the type of k, and the state after the last token. The p of a returned state is only the
    scale in which a and b are written: no gradient flows back through it.

    Raises UserError for shapes that do not fit together or an unknown backend. Source: RWKV-4 (Peng et al. 2023); v2
    and v3 are the same sum with k_max 60 and den_eps 1e-16 and 1e-8.
    """
    B, _, C = k.shape
    if v.shape != k.shape or w.shape != (C,) or u.shape != (C,) or (state is not None and state.shape != (B, 3, C)):
        raise UserError(f"wkv: w and u must be [C], v like k and state [B,3,C] for k {list(k.shape)}")
    if v.dtype != k.dtype:
        common = torch.promote_types(k.dtype, v.dtype)
        k, v = k.to(common), v.to(common)
    if uses_kernel(backend, k.device) and k.dtype in native.DTYPES[k.device.type] and k.numel() > 0:
        return native.wkv_native(w, u, k, v, state, den_eps, k_max)
    return wkv_reference(w, u, k, v, state, den_eps, k_max)
