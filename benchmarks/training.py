"""python -m benchmarks.training: tokens per second of whole training steps, interleaved in one run.

Each step is that of the trainer: forward, backward, clipping, Adam. Beside the model as it is ("ours") stands the same
model by the route its operation had before there was a kernel for it: v2 to v4 by depthwise convolution, v1 by the
materialised matrix of time weights. Random tokens: no corpus is read.
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.timing import CLOCKS, interleave
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError, main_guard, nearest
from rwkv_lab.runs.provenance import processor_name

if TYPE_CHECKING:
    from rwkv_lab.models.lm import LM

VOCABULARY = 136


def training_step(model: "LM", batch: int, ctx_len: int, precision: str, device: str) -> Callable[[], None]:
    """One update of ``model`` on fresh random tokens each time."""
    import torch

    from rwkv_lab.training.device import Resolved
    from rwkv_lab.training.optim.adam import AdamConfig

    model.to(device).train()
    settings = AdamConfig()
    optimizers = settings.build(dict(model.named_parameters()))
    settings.set_lr(optimizers, 0, 1e-4)
    resolved = Resolved(device, precision, "native", torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        tokens = torch.randint(VOCABULARY, (batch, ctx_len + 1), generator=generator).to(device)
        with resolved.autocast():
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])  # type: ignore[operator]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def row(name: str, size: tuple[int, int], ctx_len: int, precision: str, args: argparse.Namespace) -> str:
    """One row of the table: tokens per second as it is and, where there was another, by the earlier route."""
    from benchmarks.baselines import take_earlier_route
    from rwkv_lab import models

    L, C = size

    def contender(earlier: bool) -> Callable[[], None] | None:
        model = models.build(name, vocab_size=VOCABULARY, n_layer=L, n_embd=C, ctx_len=ctx_len, head_qk_dim=0)
        if earlier and not take_earlier_route(model):
            return None
        return training_step(model, args.batch, ctx_len, precision, args.device)

    contenders = {"ours": contender(earlier=False), "before": None if args.ours_only else contender(earlier=True)}
    runs: dict[str, Callable[[], object]] = {way: step for way, step in contenders.items() if step is not None}
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description="Times training steps.")
    parser.add_argument("--models", default=",".join(registry.names("model")), help="comma-separated (default: all)")
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
        if name not in registry.names("model"):
            known = registry.names("model")
            raise UserError(f"--models: {name} is not a model{nearest(name, known)}: choose among {', '.join(known)}")
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
