"""python -m benchmarks.ops: times the kernels against other ways to compute the same, interleaved in one run.

Rows: the scan on the CPU against depthwise convolution, a loop over time and FFT; RWKV v1's time weights against the
materialised matrix; on a GPU the scan against one thread per channel and a convolution kernel (`ops_cuda.py`). Every
contender gets the same inputs, threads and number of turns, and the turns alternate.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.timing import CLOCKS, Clock, Row, Run, interleave, table
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.runs.provenance import processor_name

if TYPE_CHECKING:
    from torch import Tensor


def copy_bandwidth(clock: Clock, bytes_each: int = 1 << 28) -> float:
    """Bytes per second of a copy too large for the caches, counting what is read and what is written."""
    import torch

    source, target = (torch.ones(bytes_each // 4) for _ in range(2))
    taken = interleave({"copy": lambda: target.copy_(source)}, 7, clock)["copy"]
    return 2 * bytes_each / (taken * 1e-3)


def both_ways(compute: Callable[..., "Tensor"], inputs: list["Tensor"]) -> tuple[Run, Run]:
    """A run of the forward pass alone, without a graph, and one of forward and backward."""
    import torch

    leaves = [x.detach().requires_grad_() for x in inputs]
    gy = torch.ones_like(compute(*inputs))

    def forward() -> object:
        with torch.no_grad():
            return compute(*inputs)

    return forward, lambda: torch.autograd.grad(compute(*leaves), leaves, gy)


def time_contenders(
    op: str,
    contenders: dict[str, Callable[..., "Tensor"]],
    inputs: list["Tensor"],
    turns: int,
    bandwidth: float,
    clock: Clock,
) -> list[Row]:
    """Rows of all contenders over the same inputs; of the first, ours, also the share of the copy bandwidth."""
    runs: dict[str, Run] = {}
    for name, compute in contenders.items():
        runs[f"{name} forward"], runs[f"{name} both"] = both_ways(compute, inputs)
    taken = interleave(runs, turns, clock)
    x = inputs[-1]
    rows = []
    for i, name in enumerate(contenders):
        both = taken[f"{name} both"]
        # least traffic: forward reads k, v and writes y; backward reads k, v, gy and writes gk, gv
        share = 8 * x.numel() * x.element_size() / (both * 1e-3) / bandwidth if i == 0 and op == "wkv" else None
        forward = taken[f"{name} forward"]
        shape = "x".join(str(n) for n in x.shape)
        rows.append(Row(op, shape, str(x.dtype).removeprefix("torch."), name, forward, both - forward, share))
    return rows


def scan_rows(turns: int, bandwidth: float, clock: Clock) -> list[Row]:
    import torch

    from benchmarks import baselines
    from rwkv_lab.ops import wkv

    def ours(w: "Tensor", u: "Tensor", k: "Tensor", v: "Tensor") -> "Tensor":
        return wkv(w, u, k, v, None, baselines.EPS, baselines.K_MAX)[0]

    others = {"conv1d": baselines.by_convolution, "loop": baselines.by_loop, "FFT": baselines.by_fft}
    rows = []
    for (B, T, C), dtype in [
        ((8, 256, 256), torch.float32),
        ((4, 1024, 512), torch.float32),
        ((8, 256, 256), torch.bfloat16),
        ((4, 1024, 512), torch.bfloat16),
    ]:
        generator = torch.Generator().manual_seed(0)
        w, u = -torch.randn(C, generator=generator).exp(), torch.randn(C, generator=generator)
        k, v = (torch.randn(B, T, C, generator=generator).to(dtype) for _ in range(2))
        contenders = {"native": ours} | (others if dtype == torch.float32 else {"loop": others["loop"]})
        rows += time_contenders("wkv", contenders, [w, u, k, v], turns, bandwidth, clock)
    return rows


def toeplitz_rows(turns: int, bandwidth: float, clock: Clock) -> list[Row]:
    import torch

    from benchmarks.baselines import materialised_mix
    from rwkv_lab.ops.toeplitz import toeplitz_mix

    rows = []
    for B, T, H, S in [(8, 256, 8, 64), (4, 1024, 8, 64), (2, 2048, 8, 64)]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(H, T), (H, 1, T), (H, T, 1), (B, T, H, S)]
        inputs = [torch.rand(*shape, generator=generator) for shape in shapes]
        contenders = {"ours": toeplitz_mix, "materialised": materialised_mix}
        rows += time_contenders("toeplitz", contenders, inputs, turns, bandwidth, clock)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description="Times the kernels; prints a table.")
    parser.add_argument("--turns", type=int, default=5, help="turns of every contender (default 5)")
    parser.add_argument("--threads", type=int, help="torch's CPU threads (default: all cores)")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="wall, or processor time on a busy machine"
    )
    parser.add_argument("--only", choices=["wkv", "toeplitz", "cuda"], help="just these rows")
    parser.add_argument("--out", type=Path, help="also add the tables to this file")
    args = parser.parse_args()
    if args.turns < 1:
        raise UserError(f"--turns {args.turns}: at least one turn")
    import torch

    from rwkv_lab.ops.memory import keep_freed_memory

    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.only == "cuda" and not torch.cuda.is_available():
        raise UserError("--only cuda: torch sees no GPU")
    for part in parts(args.only, args.turns, args.clock):
        print(f"{part}\n", flush=True)
        if args.out:
            with open(args.out, "a") as file:
                file.write(f"{part}\n\n")
    return 0


def parts(only: str | None, turns: int, clock: str) -> Iterator[str]:
    """The parts of the report, each as soon as it is measured."""
    import torch

    if only != "cuda":
        bandwidth = copy_bandwidth(CLOCKS[clock])
        threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
        yield f"{processor_name()}, {threads}, copies at {bandwidth / 1e9:.1f} GB/s, median of {turns}, {clock} time"
        if only != "toeplitz":
            yield table(scan_rows(turns, bandwidth, CLOCKS[clock]))
        if only != "wkv":
            yield table(toeplitz_rows(turns, bandwidth, CLOCKS[clock]))
    if only in (None, "cuda") and torch.cuda.is_available():
        from benchmarks.ops_cuda import cuda_rows, head

        yield head()
        for rows in cuda_rows(turns):
            yield table(rows)


if __name__ == "__main__":
    raise SystemExit(main_guard(main))
