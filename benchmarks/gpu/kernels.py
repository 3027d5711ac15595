"""Steps on the scan's kernels: build and load, numbers against float64, speed against copies and other scans."""

import functools
import itertools
import subprocess
import time

import torch
from torch import Tensor

from benchmarks.gpu.report import Step
from rwkv_lab.ops import build as builds
from rwkv_lab.ops import native, resolve_backend, wkv

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}
RUNTIMES = ("@GLIBC", "@CXXABI", "@GCC")
NAMES = ("y", "state", "gw", "gu", "gk", "gv")
# [B,T,C]: few channels are cut along time on a GPU, many are not
SHAPES = [(2, 1, 33), (2, 37, 129), (1, 1025, 45), (8, 1025, 1023), (1, 16384, 41), (1, 16384, 2047)]
TINY_SHAPES = [(2, 1, 33), (2, 37, 5), (1, 1025, 3)]


def build(step: Step) -> None:
    """Builds and loads; the causes where that fails, and symbols nobody provides."""
    kinds: list[tuple[builds.Kind, str]] = [("cpu", "")]
    if not step.rehearse:
        kinds.append(("cuda", native.architecture(torch.device("cuda"))))
    for kind, arch in kinds:
        started = time.monotonic()
        path = builds.library(kind, arch, torch.version.cuda)
        seconds = time.monotonic() - started
        step.found(f"{kind} library", path=str(path), seconds=seconds, bytes=path.stat().st_size)
        missing = _symbols(path, "--undefined-only") - _given()
        step.check(f"symbols of the {kind} library", not missing, missing=sorted(missing))
    started = time.monotonic()
    reason = native.why_not(torch.device(step.device, 0) if step.device == "cuda" else torch.device("cpu"))
    step.check("load and probe", reason is None, seconds=time.monotonic() - started, cause=reason)


def _symbols(path: object, kind: str) -> set[str]:
    """Names of the dynamic symbols that are not of the C and C++ runtimes."""
    done = subprocess.run(["nm", "-D", kind, str(path)], check=True, capture_output=True, text=True)
    names = [words[-1] for words in map(str.split, done.stdout.splitlines()) if "w" not in words]
    return {name.partition("@")[0] for name in names if not any(runtime in name for runtime in RUNTIMES)}


def _given() -> set[str]:
    folder = builds.torch_folder() / "lib"
    names = ("libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")
    return {
        symbol for name in names if (folder / name).exists() for symbol in _symbols(folder / name, "--defined-only")
    }


def both_ways(tensors: list[Tensor], state: Tensor | None, gy: Tensor) -> list[Tensor]:
    w, u, k, v = tensors
    y, out = wkv(w, u, k, v, state, 1e-8, 60.0, backend="native")
    sums = out[:, :2] * out[:, 2:].exp()
    grads = torch.autograd.grad((y, sums), tensors, (gy.to(y), torch.ones_like(sums)))
    return [x.detach().double().cpu() for x in (y, sums, *grads)]


def scan(step: Step) -> None:
    """Forward and backward against the float64 kernel on the CPU, which the tests compare with the formula."""
    resolve_backend("native", step.device)
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float32, torch.bfloat16) if step.rehearse else tuple(TOLERANCE)
    for (B, T, C), with_state in itertools.product(TINY_SHAPES if step.rehearse else SHAPES, (False, True)):
        w, u, k, v, gy = (torch.randn(s, generator=generator) for s in [(C,), (C,), *3 * [(B, T, C)]])
        state = torch.randn(B, 3, C, generator=generator).abs() if with_state else None
        for dtype in dtypes:
            given = [-w.exp(), u, k.to(dtype), v.to(dtype)]
            exact = [x.double().requires_grad_() for x in given]
            expected = both_ways(exact, None if state is None else state.double(), gy.to(dtype).double())
            inputs = [x.to(step.device).requires_grad_() for x in given]
            start = None if state is None else state.to(step.device)
            found = both_ways(inputs, start, gy.to(step.device, dtype))
            least = 1e-2 * float(expected[-1].norm())
            off = {
                name: float((x - e).norm()) / max(float(e.norm()), least if name.startswith("g") else 1e-30)
                for name, x, e in zip(NAMES, found, expected, strict=True)
            }
            worst = max(off, key=lambda name: off[name])
            kind = str(dtype).removeprefix("torch.")
            what = f"{B}x{T}x{C} {kind}" + (" with state" if with_state else "")
            step.check(what, off[worst] < TOLERANCE[dtype], worst=worst, off=off[worst])


def bandwidth(step: Step) -> None:
    """Our kernels against copies, one thread a channel, convolution, a Triton scan and plain torch."""
    if step.rehearse:
        from benchmarks.timing import wall_clock

        w, u, k, v = (torch.rand(shape) for shape in [(8,), (8,), (1, 16, 8), (1, 16, 8)])
        for backend in ("native", "reference"):
            step.found(backend, forward_ms=wall_clock(functools.partial(wkv, w, u, k, v, backend=backend)))
        return
    from benchmarks import ops_cuda

    step.found("copies", tb_per_second=ops_cuda.copy_bandwidth() / 1e12)
    for rows in ops_cuda.cuda_rows(turns=11):
        for row in rows:
            share = {} if row.of_copy is None else {"of_copy_bandwidth": row.of_copy}
            times = {"forward_us": 1e3 * row.forward, "backward_us": 1e3 * row.backward}
            step.found(f"{row.shape} {row.dtype} {row.contender}", **times, **share)
    _other_scans(step)


def _other_scans(step: Step) -> None:
    from benchmarks.ops_cuda import captured, event_clock, graph_clock
    from benchmarks.timing import interleave
    from benchmarks.triton_scan import wkv_triton

    B, T, C = 8, 1024, 2048
    w, u = -torch.rand(C, device="cuda"), torch.rand(C, device="cuda")
    k, v = (torch.randn(B, T, C, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    expected = wkv(w, u, k, v, backend="native")[0].float()
    found = wkv_triton(w, u, k, v).float()
    step.check("triton computes the same", float((found - expected).norm() / expected.norm()) < 1e-2)
    runs = {
        "native": captured(lambda: wkv(w, u, k, v, backend="native")),
        "triton": captured(lambda: wkv_triton(w, u, k, v)),
    }
    for name, ms in interleave(runs, 11, graph_clock).items():
        step.found(f"{B}x{T}x{C} bfloat16 {name}, inputs in the cache", forward_us=1e3 * ms)
    eager = event_clock(lambda: wkv(w, u, k, v, backend="reference"))
    step.found(f"{B}x{T}x{C} bfloat16 eager", forward_us=1e3 * eager)
