"""python -m benchmarks.decoding [--size v4_169m] [--steps 5] [--device cpu|cuda] [--gpt2]: cost of a token by context.

Random weights. The state of a context is made of random keys and values (attention) or is the state after one token
(RWKV, whose is as large after any number), so that no context has to be read first. Time is the processor's on a CPU,
where other programs may run beside, and the wall clock's on a GPU.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from benchmarks.timing import processor_clock, wall_clock
from rwkv_lab import models
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.models.blocks.attention import AttentionState
from rwkv_lab.models.lm import LM
from rwkv_lab.models.state import State
from rwkv_lab.util.paths import REPOSITORY

CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
MODELS = ("rwkv_v4", "mha_rotary")
VOCAB = 50277  # of the tokenizer of the published RWKV v4


class Cost(NamedTuple):
    """Cost of one more token after a context."""

    model: str
    parameters: int
    context: int
    milliseconds: float  # median
    state_bytes: int  # what is kept from token to token


def tensors(state: Any) -> Iterator[Tensor]:
    """Yield every tensor of nested tuples, lists and named tuples."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from tensors(part)


def state_of(model: LM, context: int) -> State:
    """Return a state of ``model`` as large as after ``context`` tokens."""
    device = model.emb.weight.device
    _, state = model.advance(torch.zeros(1, 1, dtype=torch.long, device=device))
    blocks = []
    for block in state.blocks:
        att = block.att
        if isinstance(att, AttentionState):
            _, H, _, S = att.k.shape
            k, v = (torch.randn(1, H, context, S, device=device, dtype=att.k.dtype) for _ in range(2))
            att = AttentionState(att.last, k, v)
        blocks.append(block._replace(att=att))
    return state._replace(blocks=blocks, tokens=None, position=context)


def timed(step: Callable[[], object], steps: int, device: str) -> float:
    """Return the median milliseconds of ``step``, after one to warm up."""

    def once() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    once()
    clock = wall_clock if device == "cuda" else processor_clock
    return statistics.median(clock(once) for _ in range(steps))


def costs(name: str, sizes: dict[str, int], contexts: tuple[int, ...], steps: int, device: str) -> list[Cost]:
    """Return the cost of a token of the model ``name`` after each context."""
    more: dict[str, Any] = {"time_out": False} if name.startswith("mha") else {}
    fields: dict[str, Any] = {**sizes, **more, "ctx_len": max(contexts) + 1, "head_qk_dim": 0}
    model = models.build(name, vocab_size=VOCAB, **fields).to(device).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    found = []
    with torch.no_grad():
        for context in contexts:
            state = state_of(model, context)
            kept = sum(tensor.numel() * tensor.element_size() for tensor in tensors(tuple(state.blocks)))
            spent = timed(lambda state=state: model.advance(token, state), steps, device)  # type: ignore[misc]
            found.append(Cost(name, parameters, context, spent, kept))
    return found


def gpt2(contexts: tuple[int, ...], steps: int, device: str) -> list[Cost]:
    """Return the cost of a token of GPT-2 124M of transformers, with random weights and positions for all contexts."""
    from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_positions=max(contexts) + 1)).eval()
    model = model.to(torch.device(device))  # type: ignore[arg-type]
    config, token = model.config, torch.zeros(1, 1, dtype=torch.long, device=device)
    shape = (1, config.n_head, 0, config.n_embd // config.n_head)
    found = []
    with torch.no_grad():
        for context in contexts:
            size = (*shape[:2], context, shape[3])
            kept = [(torch.randn(size, device=device), torch.randn(size, device=device)) for _ in range(config.n_layer)]

            def step(kept: Any = kept) -> object:
                cache = DynamicCache()
                for layer, (k, v) in enumerate(kept):
                    cache.update(k, v, layer)
                return model(token, past_key_values=cache, use_cache=True).logits

            state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors(kept))
            found.append(Cost("gpt2", model.num_parameters(), context, timed(step, steps, device), state_bytes))
    return found


def table(rows: list[Cost]) -> str:
    """Return the costs in Markdown."""
    lines = ["| model | parameters | context | ms a token | state |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {row.model} | {row.parameters / 1e6:.1f} M | {row.context} | {row.milliseconds:.3g} | "
        f"{row.state_bytes / 1e6:.3g} MB |"
        for row in rows
    ]
    return "\n".join(lines)


def figure(rows: list[Cost], path: Path) -> None:
    """Write time and state against context as a PNG."""
    from matplotlib.figure import Figure

    from analysis.plots.style import paper, plain_numbers, style

    contexts = sorted({row.context for row in rows})
    with paper():
        drawn = Figure(figsize=(7.2, 3.2))
        for ax, key, label, unit in zip(
            drawn.subplots(1, 2), ("milliseconds", "state_bytes"), ("ms a token", "state (MB)"), (1, 1e6), strict=True
        ):
            for place, name in enumerate(dict.fromkeys(row.model for row in rows)):
                look, own = style(place), [row for row in rows if row.model == name]
                values = [getattr(row, key) / unit for row in own]
                ax.plot([row.context for row in own], values, marker=look.mpl_marker, color=look.colour, label=name)
            ax.set_xscale("log", base=2)
            if key == "state_bytes":
                ax.set_yscale("log")
                plain_numbers(ax.yaxis)
            ax.set_xticks(contexts, [str(context) for context in contexts], rotation=45)
            ax.minorticks_off()
            ax.set(xlabel="context (tokens)", ylabel=label)
            ax.legend()
        drawn.savefig(path, dpi=160)


def main(argv: list[str]) -> None:
    """Print the table of the models of a size, and of GPT-2 if asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--size", default="small", help="a preset of conf/size, e.g. v4_169m or v4_430m (small)")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)), help="contexts in tokens")
    parser.add_argument("--steps", type=int, default=5, help="tokens timed after each context (5)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU (1)")
    parser.add_argument("--gpt2", action="store_true", help="GPT-2 124M of transformers beside them")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw time and state against context")
    options = parser.parse_args(argv)
    preset = REPOSITORY / "conf" / "size" / f"{options.size}.yaml"
    if not preset.is_file():
        raise UserError(f"--size {options.size} is unknown: choose one of {', '.join(sizes())}")
    torch.set_num_threads(options.threads)
    contexts = tuple(int(word) for word in options.contexts.split(","))
    chosen = {key: value for key, value in yaml.safe_load(preset.read_text()).items() if key in ("n_layer", "n_embd")}
    rows = [row for name in MODELS for row in costs(name, chosen, contexts, options.steps, options.device)]
    if options.gpt2:
        rows += gpt2(contexts, options.steps, options.device)
    print(table(rows))
    if options.figure:
        figure(rows, options.figure)


def sizes() -> list[str]:
    """Return the names of the presets."""
    return sorted(file.stem for file in (REPOSITORY / "conf" / "size").glob("*.yaml"))


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
