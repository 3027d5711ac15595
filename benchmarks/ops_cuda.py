"""The GPU rows of the benchmark: our kernels against one thread per channel and a convolution (bench_cuda.cu).

Inputs rotate through several copies, together larger than the L2 cache, so that every turn reads from memory. The turns
of a clocked run are one CUDA graph, so that what the CPU needs to start them does not count.
"""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.baselines import curve
from benchmarks.timing import Row, Run, interleave
from rwkv_lab.ops import resolve_backend
from rwkv_lab.ops.build import CSRC, NVCC_FLAGS, Recipe, build
from rwkv_lab.ops.native import architecture

SOURCE = Path(__file__).with_name("bench_cuda.cu")
SHAPES = [
    ((8, 1024, 2048), torch.bfloat16),
    ((12, 1024, 512), torch.float32),
    ((1, 16384, 2048), torch.float32),
    ((1, 16384, 256), torch.float32),
]
ROTATE_BYTES = 256 << 20
TURNS_A_GRAPH = 20
Turn = Callable[[int], object]


def recipe(arch: str, cuda: str | None) -> Recipe:
    """The library of the kernels ours are timed against."""
    return Recipe(f"bench_cuda-{arch}", {}, {SOURCE: (*NVCC_FLAGS, f"-arch={arch}", f"-I{CSRC}")}, (), cuda)


def pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in tensors]


def stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def checked(code: int) -> None:
    if code != 0:
        raise RuntimeError(f"a baseline kernel failed to launch: CUDA error {code}")


def captured(run: Run, turns: int = TURNS_A_GRAPH) -> Run:
    """``turns`` turns of ``run`` as one CUDA graph, to be replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(turns):
            run()
    return graph.replay


def event_clock(run: Run) -> float:
    """Milliseconds of ``run`` on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def graph_clock(run: Run) -> float:
    """Milliseconds of a turn of a run made by ``captured``."""
    return event_clock(run) / TURNS_A_GRAPH


def rotating(turn: Turn, copies: int) -> Callable[[], object]:
    """A run that hands `turn` the next of `copies` numbers each time."""
    state = {"next": 0}

    def run() -> object:
        state["next"] = (state["next"] + 1) % copies
        return turn(state["next"])

    return run


def copy_bandwidth() -> float:
    source, target = (torch.empty(1 << 28, dtype=torch.uint8, device="cuda") for _ in range(2))
    taken = interleave({"copy": captured(lambda: target.copy_(source))}, 11, graph_clock)["copy"]
    return 2 * source.numel() / (taken * 1e-3)


def scan_turns(kernels: ctypes.CDLL, B: int, T: int, C: int, dtype: torch.dtype) -> tuple[dict[str, Turn], int]:
    """Forward and backward of our kernels and of the sequential ones, and the number of input copies."""
    copies = max(2, -(-ROTATE_BYTES // (B * T * C * dtype.itemsize)))
    generator = torch.Generator("cuda").manual_seed(0)
    w, u = (torch.randn(C, device="cuda", generator=generator) for _ in range(2))
    w = -w.exp()
    k, v, gy = (torch.randn(copies, B, T, C, device="cuda", generator=generator).to(dtype) for _ in range(3))
    op = torch.ops.rwkv_lab
    checkpoints = [op.wkv_fwd(w, u, k[i], v[i], None, 0.0, None, True)[2] for i in range(copies)]
    scratch = torch.empty(3, B, T, C, device="cuda")
    y, gk, gv = (torch.empty(B, T, C, device="cuda", dtype=dtype) for _ in range(3))
    gw, gu = (torch.empty(B, C, device="cuda") for _ in range(2))
    common = (dtype == torch.bfloat16, B, T, C, *pointers(w, u))

    checked(kernels.sequential_forward(*common, *pointers(k[0], v[0], y, scratch), stream()))

    def sequential_forward(i: int) -> None:
        checked(kernels.sequential_forward(*common, *pointers(k[i], v[i], y, None), stream()))

    def sequential_backward(i: int) -> None:
        rest = pointers(k[i], v[i], scratch, gy[i], gw, gu, gk, gv)
        checked(kernels.sequential_backward(*common, *rest, stream()))

    return {
        "native forward": lambda i: op.wkv_fwd(w, u, k[i], v[i], None, 0.0, None, True),
        "native backward": lambda i: op.wkv_bwd(w, u, k[i], v[i], checkpoints[i], gy[i], None, 0.0, None),
        "sequential forward": sequential_forward,
        "sequential backward": sequential_backward,
    }, copies


def convolution_turn(kernels: ctypes.CDLL, B: int, T: int, C: int) -> Turn:
    """The forward pass of RWKV-3's core by two convolutions, elementwise work not counted."""
    weights = curve(-torch.rand(C, device="cuda"), torch.zeros(C, device="cuda"), T)
    x, y = (torch.randn(B, C, T, device="cuda") for _ in range(2))

    def turn(_: int) -> None:
        for _ in range(2):
            checked(kernels.convolution(B, T, C, *pointers(weights, x, y), stream()))

    return turn


def head() -> str:
    """The card's name, torch's version and the copy bandwidth."""
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copies at {copy_bandwidth() / 1e12:.2f} TB/s"


def cuda_rows(turns: int) -> Iterator[list[Row]]:
    """The rows of one shape after another."""
    resolve_backend("native", "cuda")
    arch = architecture(torch.device("cuda"))
    kernels = ctypes.CDLL(str(build(recipe(arch, torch.version.cuda))))
    bandwidth = copy_bandwidth()
    for shape, dtype in SHAPES:
        yield shape_rows(kernels, shape, dtype, turns, bandwidth)


def shape_rows(
    kernels: ctypes.CDLL, shape: tuple[int, int, int], dtype: torch.dtype, turns: int, bandwidth: float
) -> list[Row]:
    B, T, C = shape
    turn_of, copies = scan_turns(kernels, B, T, C, dtype)
    if T <= 1024 and dtype == torch.float32:
        turn_of["convolution forward"] = convolution_turn(kernels, B, T, C)
    runs = {name: captured(rotating(turn, copies)) for name, turn in turn_of.items()}
    taken = interleave(runs, turns, graph_clock)
    rows = []
    for name in ("native", "sequential", "convolution"):
        if f"{name} forward" not in taken:
            continue
        forward, backward = taken[f"{name} forward"], taken.get(f"{name} backward", float("nan"))
        share = 8 * B * T * C * dtype.itemsize / ((forward + backward) * 1e-3) / bandwidth
        kind = str(dtype).removeprefix("torch.")
        rows.append(Row("wkv", f"{B}x{T}x{C}", kind, name, forward, backward, share if name == "native" else None))
    return rows
