"""python -m rwkv_lab.ops.bench: times the kernels against other ways to compute the same, interleaved in one run.

Rows: the scan on the CPU against depthwise convolution, a loop over time and FFT; RWKV v1's time weights against the
materialised matrix; on a GPU the scan against one thread per channel and a convolution kernel (`bench_cuda.py`). Every
contender gets the same inputs, threads and number of turns, and the turns alternate.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rwkv_lab.config.errors import UserError, main_guard

if TYPE_CHECKING:
    from torch import Tensor

Run = Callable[[], object]
Clock = Callable[[Run], float]


class Row(NamedTuple):
    """One contender: median milliseconds of forward and backward, and the share of the copy bandwidth it moves at."""

    op: str
    shape: str
    dtype: str
    contender: str
    forward: float
    backward: float
    of_copy: float | None


def interleave(runs: dict[str, Run], turns: int, clock: Clock) -> dict[str, float]:
    """Median milliseconds of every run; one turn each to warm up, then `turns` rounds of one turn each."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            times[name].append(clock(run))
    return {name: statistics.median(values) for name, values in times.items()}


def wall_clock(run: Run) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def processor_clock(run: Run) -> float:
    """Processor time of all threads: what to compare where other programs keep the machine busy; use one thread."""
    start = time.process_time()
    run()
    return (time.process_time() - start) * 1e3


CLOCKS = {"wall": wall_clock, "processor": processor_clock}


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

    from rwkv_lab.ops import baselines, wkv

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

    from rwkv_lab.ops.baselines import materialised_mix
    from rwkv_lab.ops.toeplitz import toeplitz_mix

    rows = []
    for B, T, H, S in [(8, 256, 8, 64), (4, 1024, 8, 64), (2, 2048, 8, 64)]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(H, T), (H, 1, T), (H, T, 1), (B, T, H, S)]
        inputs = [torch.rand(*shape, generator=generator) for shape in shapes]
        contenders = {"ours": toeplitz_mix, "materialised": materialised_mix}
        rows += time_contenders("toeplitz", contenders, inputs, turns, bandwidth, clock)
    return rows


def table(rows: list[Row]) -> str:
    """The rows in Markdown; beside each how many times as long as the first of its shape it takes, both ways."""
    lines = [
        "| op | shape | type | way | forward ms | backward ms | of copy bandwidth | takes |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    ours: dict[tuple[str, str, str], float] = {}
    for row in rows:
        total = row.forward + row.backward
        first = ours.setdefault((row.op, row.shape, row.dtype), total)
        share = "" if row.of_copy is None else f"{row.of_copy:.0%}"
        times = "1" if total == first else f"{total / first:.1f}x"
        lines.append(
            f"| {row.op} | {row.shape} | {row.dtype} | {row.contender} | {row.forward:.3g} | {row.backward:.3g} "
            f"| {share} | {times} |"
        )
    return "\n".join(lines)


def processor_name() -> str:
    """The processor's own name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rwkv_lab.ops.bench", description="Times the kernels; prints a table."
    )
    parser.add_argument("--turns", type=int, default=5, help="turns of every contender (default 5)")
    parser.add_argument("--threads", type=int, help="torch's CPU threads (default: all cores)")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="wall, or processor time on a busy machine"
    )
    parser.add_argument("--only", choices=["wkv", "toeplitz", "cuda"], help="just these rows")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    if args.turns < 1:
        raise UserError(f"--turns {args.turns}: at least one turn")
    import torch

    from rwkv_lab.ops.memory import keep_freed_memory

    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    parts = []
    if args.only != "cuda":
        bandwidth = copy_bandwidth(CLOCKS[args.clock])
        head = f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        rows = [] if args.only == "toeplitz" else scan_rows(args.turns, bandwidth, CLOCKS[args.clock])
        rows += [] if args.only == "wkv" else toeplitz_rows(args.turns, bandwidth, CLOCKS[args.clock])
        parts.append(
            f"{head}, copies at {bandwidth / 1e9:.1f} GB/s, median of {args.turns}, {args.clock} time\n\n{table(rows)}"
        )
    if args.only in (None, "cuda") and torch.cuda.is_available():
        from rwkv_lab.ops.bench_cuda import cuda_report

        parts.append(cuda_report(args.turns))
    elif args.only == "cuda":
        raise UserError("--only cuda: torch sees no GPU")
    report = "\n\n".join(parts) + "\n"
    print(report, end="")
    if args.out:
        args.out.write_text(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main_guard(main))
