"""Loads the compiled kernels and tells torch their shapes and gradients."""

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from rwkv_lab.config.errors import UserError
from rwkv_lab.ops.build import BuildFailed, Kind, library

# steps between two saved states, as in csrc/wkv_cpu.h and csrc/wkv_cuda.h
TILE = {"cpu": 32, "cuda": 64}
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def load_library(kind: Kind, arch: str = "") -> None:
    """Builds if need be and loads; a library that does not load (cut short by a full disk, say) is built once more."""
    path = library(kind, arch)
    try:
        torch.ops.load_library(path)
    except OSError:
        path.unlink(missing_ok=True)
        try:
            torch.ops.load_library(library(kind, arch))
        except OSError as error:
            raise BuildFailed(f"the {kind} kernels do not load: {error}") from error


@functools.cache
def define_operators() -> None:
    """The operators, their CPU kernels, shapes and gradients; once per process."""
    load_library("cpu")
    torch.library.register_fake("rwkv_lab::wkv_fwd", forward_shapes)
    torch.library.register_fake("rwkv_lab::wkv_bwd", backward_shapes)
    torch.library.register_autograd("rwkv_lab::wkv_fwd", backward, setup_context=save_for_backward)


@functools.cache
def why_not(device_type: str) -> str | None:
    """None where the kernels for `device_type` are ready, else the reason; the first call builds and loads them."""
    if device_type not in TILE:
        return f"there is no kernel for {device_type} tensors"
    try:
        define_operators()
        if device_type == "cuda":
            load_library("cuda", "sm_{}{}".format(*torch.cuda.get_device_capability()))
    except BuildFailed as failure:
        return str(failure)
    return None


@functools.cache
def ready(device_type: str, required: bool) -> bool:
    """Whether the kernels for `device_type` can be used; where not, one warning, or Mistake if they are `required`."""
    reason = why_not(device_type)
    if reason is not None and required:
        raise UserError(f"ops.backend: native is not possible here ({reason}); use auto or reference")
    if reason is not None:
        warnings.warn(f"slow plain torch in place of the native kernels: {reason}", stacklevel=2)
    return reason is None


def forward_shapes(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None, den_eps: float, k_max: float | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, C = k.shape
    tile = TILE[k.device.type]
    rows = (T + tile - 1) // tile + 1 if keep else 0
    return k.new_empty(B, T, C), w.new_empty(B, 3, C), w.new_empty(B, rows, 3, C)


def backward_shapes(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    checkpoints: Tensor,
    gy: Tensor,
    gstate: Tensor | None,
    den_eps: float,
    k_max: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, C = k.shape
    rows = w.new_empty(B, C), w.new_empty(B, C)
    return *rows, k.new_empty(B, T, C), k.new_empty(B, T, C), w.new_empty(B, 3, C)


def save_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    w, u, k, v, state, ctx.den_eps, ctx.k_max, _ = inputs
    ctx.has_state = state is not None
    ctx.set_materialize_grads(False)  # the checkpoints never have a gradient, the state rarely has one
    ctx.save_for_backward(w, u, k, v, output[2])


def backward(ctx: Any, gy: Tensor | None, gstate: Tensor | None, _: Tensor | None) -> tuple:
    w, u, k, v, checkpoints = ctx.saved_tensors
    gy = torch.zeros_like(k) if gy is None else gy
    gw, gu, gk, gv, gstate_in = torch.ops.rwkv_lab.wkv_bwd(
        w,
        u,
        k,
        v,
        checkpoints,
        gy.contiguous(),
        None if gstate is None else gstate.contiguous(),
        ctx.den_eps,
        ctx.k_max,
    )
    return gw.sum(0), gu.sum(0), gk, gv, gstate_in if ctx.has_state else None, None, None, None


def wkv_native(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None, den_eps: float, k_max: float | None
) -> tuple[Tensor, Tensor]:
    """`rwkv_lab.ops.wkv` through the kernels; k and v of one type among DTYPES."""
    sums = torch.float64 if k.dtype == torch.float64 else torch.float32
    inputs = [w.to(sums), u.to(sums), k.contiguous(), v.contiguous()]
    if state is not None:
        state = state.to(sums).contiguous()
    wanted = (*inputs, state) if state is not None else inputs
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in wanted)
    y, state_out, _ = torch.ops.rwkv_lab.wkv_fwd(*(x.contiguous() for x in inputs), state, den_eps, k_max, keep)
    return y, state_out
