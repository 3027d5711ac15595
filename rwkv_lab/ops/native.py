"""Loads the compiled kernels and tells torch their shapes and gradients."""

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_lab.config.errors import UserError
from rwkv_lab.ops.build import Kind, library
from rwkv_lab.ops.reference import wkv_reference
from rwkv_lab.ops.toolchain import BuildFailed

# steps between two saved states, as in csrc/wkv_cpu.h and csrc/wkv_cuda.h
TILE = {"cpu": 32, "cuda": 64}
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
OLDEST_CARD = (7, 0)  # compute capability
PROBE_TOLERANCE = 1e-4


def registered(key: str) -> bool:
    """Return whether this process has loaded the kernels for a dispatch key, CPU or CUDA."""
    exists = hasattr(torch.ops.rwkv_lab, "wkv_fwd")
    return exists and torch._C._dispatch_has_kernel_for_dispatch_key("rwkv_lab::wkv_fwd", key)


def load_library(kind: Kind, arch: str = "", cache: Path | None = None) -> None:
    """Builds if need be and loads; BuildFailed with the loader's own words, such as an undefined symbol."""
    path = library(kind, arch, torch.version.cuda, cache)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        # torch names the file only; the loader's own words are the cause.
        raise BuildFailed(f"the {kind} kernels do not load: {error.__cause__ or error}") from error


def define_operators(cache: Path | None) -> None:
    """The operators, their CPU kernels, shapes and gradients; once per process."""
    if registered("CPU"):
        return
    load_library("cpu", cache=cache)
    torch.library.register_fake("rwkv_lab::wkv_fwd", forward_shapes)
    torch.library.register_fake("rwkv_lab::wkv_bwd", backward_shapes)
    torch.library.register_autograd("rwkv_lab::wkv_fwd", backward, setup_context=save_for_backward)


def architecture(device: torch.device) -> str:
    """What nvcc calls the card, such as sm_90; BuildFailed for a card older than the kernels can use."""
    if torch.version.cuda is None:
        raise BuildFailed("this torch was built without CUDA")
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CARD:
        name = torch.cuda.get_device_name(device)
        has, needs = (".".join(map(str, version)) for version in (capability, OLDEST_CARD))
        raise BuildFailed(f"the kernels need compute capability {needs}, {name} has {has}")
    return "sm_{}{}".format(*capability)


def load_for_cards(arch: str, cache: Path | None) -> None:
    """The CUDA kernels for cards of one architecture: a process can load one library."""
    if not registered("CUDA"):
        load_library("cuda", arch, cache)
    elif not any(f"wkv_cuda-{arch}-" in str(path) for path in torch.ops.loaded_libraries):
        raise BuildFailed(f"this process has loaded the kernels of another kind of card than {arch}")


def probe(device: torch.device) -> None:
    """Run the kernels once, forward and backward; BuildFailed if they do not run or their numbers are wrong."""
    w, u = torch.tensor([-0.5, -1.0]), torch.tensor([0.5, -0.5])
    k, v = torch.arange(6.0).view(1, 3, 2), torch.arange(6.0, 0.0, -1.0).view(1, 3, 2)

    def both_ways(compute: Any, to: torch.device) -> list[Tensor]:
        inputs = [x.to(to).requires_grad_() for x in (w, u, k, v)]
        y, _ = compute(*inputs, None, 1e-8, 60.0)
        return [x.detach().cpu() for x in (y, *torch.autograd.grad(y.square().sum(), inputs))]

    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        expected = both_ways(wkv_reference, torch.device("cpu"))
        try:
            found = both_ways(wkv_native, device)
        except RuntimeError as error:
            raise BuildFailed(f"the kernels do not run on {device}: {str(error).splitlines()[0]}") from error
    for x, e in zip(found, expected, strict=True):
        if not torch.allclose(x, e, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE):
            raise BuildFailed(f"the kernels compute wrong numbers on {device}")


@functools.cache
def why_not(device: torch.device, cache: Path | None = None) -> str | None:
    """None if the kernels for ``device`` are ready, else the reason; the first call builds, loads and tries them."""
    if device.type not in TILE:
        return f"there is no kernel for {device.type} tensors"
    try:
        define_operators(cache)
        if device.type == "cuda":
            load_for_cards(architecture(device), cache)
        probe(device)
    except BuildFailed as failure:
        return str(failure)
    return None


@functools.cache
def ready(device: torch.device, required: bool, cache: Path | None = None) -> bool:
    """Return whether ``device`` can use the kernels; if not, one warning, or UserError if they are ``required``."""
    reason = why_not(device, cache)
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
