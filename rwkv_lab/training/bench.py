"""python -m rwkv_lab.training.bench: tokens per second of whole training steps, interleaved in one run.

Each step is that of the trainer: forward, backward, clipping, Adam. Beside the model as it is ("ours") stands the same
model by the route its operation had before there was a kernel for it: v2 to v4 by depthwise convolution, v1 by the
materialised matrix of time weights. Random tokens: no corpus is read.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

from rwkv_lab.config.errors import UserError, main_guard, nearest
from rwkv_lab.models.registry import MODELS
from rwkv_lab.ops.bench import CLOCKS, interleave, processor_name

if TYPE_CHECKING:
    from torch import Tensor, nn

VOCABULARY = 136
BEFORE = {
    "rwkv_v1": "materialised",
    "rwkv_v2": "convolution",
    "rwkv_v3": "convolution",
    "rwkv_v4": "convolution",
}


@contextlib.contextmanager
def earlier_route(name: str) -> Iterator[None]:
    """Within it, ``name`` computes its operation as ``BEFORE`` says."""
    from rwkv_lab.ops import baselines

    def convolution(w: "Tensor", u: "Tensor", k: "Tensor", v: "Tensor", *_: Any, **__: Any) -> tuple["Tensor", None]:
        return baselines.by_convolution(w, u, k, v), None

    routes: dict[str, tuple[str, Callable]] = {
        "materialised": ("rwkv_lab.models.rwkv_v1.toeplitz_mix", baselines.materialised_mix),
        "convolution": ("rwkv_lab.models.blocks.wkv_mix.wkv", convolution),
    }
    with mock.patch(*routes[BEFORE[name]]):
        yield


def training_step(model: "nn.Module", batch: int, ctx_len: int, precision: str, device: str) -> Callable[[], None]:
    """One update of ``model`` on fresh random tokens each time."""
    import torch

    from rwkv_lab.training.device import Resolved
    from rwkv_lab.training.optim.adam import AdamConfig

    model.to(device).train()
    settings = AdamConfig()
    optimizer = settings.build(model)
    settings.set_step(optimizer, 0, 1e-4)
    resolved = Resolved(device, precision, "native", torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        tokens = torch.randint(VOCABULARY, (batch, ctx_len + 1), generator=generator).to(device)
        with resolved.autocast():
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])  # type: ignore[operator]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def row(name: str, size: tuple[int, int], ctx_len: int, precision: str, args: argparse.Namespace) -> str:
    """One row of the table: tokens per second as it is and, where there was another, by the earlier route."""
    from rwkv_lab import models

    L, C = size
    model = models.build(name, vocab_size=VOCABULARY, n_layer=L, n_embd=C, ctx_len=ctx_len, head_qk_dim=0)
    step = training_step(model, args.batch, ctx_len, precision, args.device)

    def before() -> None:
        with earlier_route(name):
            step()

    runs: dict[str, Callable[[], object]] = {"ours": step}
    if name in BEFORE and not args.ours_only:
        runs["before"] = before
    taken = interleave(runs, args.turns, CLOCKS[args.clock])
    speed = {way: args.batch * ctx_len / (taken[way] * 1e-3) for way in taken}
    cells = [name, f"L{L} D{C}", str(ctx_len), precision, f"{speed['ours']:,.0f}"]
    if "before" in speed:
        return "| " + " | ".join([*cells, f"{speed['before']:,.0f}", f"{speed['ours'] / speed['before']:.2f}x"]) + " |"
    return "| " + " | ".join([*cells, "", ""]) + " |"


def several(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def parse_size(text: str) -> tuple[int, int]:
    """``LxC`` as (layers, channels)."""
    layers, x, channels = text.partition("x")
    if not (x and layers.isdigit() and channels.isdigit() and int(layers) and int(channels)):
        raise UserError(f"--sizes: {text} is no size; write LAYERSxCHANNELS, such as 4x128")
    return int(layers), int(channels)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rwkv_lab.training.bench", description="Times training steps.")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated (default: all)")
    parser.add_argument("--sizes", default="4x128", help="LAYERSxCHANNELS, comma-separated (default 4x128)")
    parser.add_argument("--ctx", default="256", help="context lengths, comma-separated (default 256)")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or both, comma-separated (default fp32)")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step (default 8)")
    parser.add_argument("--turns", type=int, default=10, help="steps of every contender (default 10)")
    parser.add_argument("--threads", type=int, help="torch's CPU threads (default: all cores)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="processor: for a busy machine")
    parser.add_argument("--ours-only", action="store_true", help="leave the earlier routes out")
    args = parser.parse_args()
    for name in several(args.models):
        if name not in MODELS:
            raise UserError(f"--models: {name} is no model{nearest(name, MODELS)}; choose among {', '.join(MODELS)}")
    for precision in several(args.precision):
        if precision not in ("fp32", "bf16"):
            raise UserError(f"--precision: {precision} is not one of fp32, bf16")
    if not all(part.isdigit() and int(part) > 1 for part in several(args.ctx)):
        raise UserError(f"--ctx {args.ctx}: context lengths are whole numbers above 1")
    if min(args.turns, args.batch) < 1:
        raise UserError("--turns and --batch are at least 1")
    if args.device == "cuda" and args.clock == "processor":
        raise UserError("--clock processor does not see the GPU: use wall")
    return args


def main() -> int:
    args = arguments()
    sizes = [parse_size(text) for text in several(args.sizes)]
    import torch

    from rwkv_lab.training import device

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU")
    threads = args.threads or torch.get_num_threads()
    device.apply(device.Resolved(args.device, "fp32", "native", threads))
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{processor_name()}, {threads} threads"
    print(f"{machine}, torch {torch.__version__}, batch {args.batch}, median of {args.turns}, {args.clock} time\n")
    print("| model | size | context | precision | tokens/s | by the earlier route | ratio |")
    print("| --- | --- | ---: | --- | ---: | ---: | ---: |")
    for precision in several(args.precision):
        for size in sizes:
            for ctx_len in map(int, several(args.ctx)):
                for name in several(args.models):
                    print(row(name, size, ctx_len, precision, args), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main_guard(main))
