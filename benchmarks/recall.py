"""python -m benchmarks.recall STUDY [--pairs 1,2,4,8] [--figure FILE.png]: accuracy of recall by number of pairs.

STUDY is the folder of a study with data=recall. Chance is that of a reader who remembers which values were shown and
rules out those that were answered: the mean of 1/1 ... 1/n for n pairs.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from rwkv_lab import data, models, runs
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError, main_guard

SEQUENCES = 256

Arm = tuple[str, str]  # model, head-QK: its width and form, or off


def accuracies(run: runs.Run, pairs: list[int]) -> list[float]:
    """Return the accuracy of a complete run on held-out sequences of each number of pairs."""
    from rwkv_lab.training.evaluate import evaluate_sequences

    stored = run.config["data"]
    if stored["name"] != "recall":
        raise UserError(f"{run.path} was not trained on data=recall")
    model, found = models.load(run.path), []
    for n in pairs:
        task = registry.get("data", "recall")(
            pairs=n, vocab=stored["vocab"], length=model.config.ctx_len, held_out=SEQUENCES
        )
        ids = registry.get("tokenizer", "ids")(vocab_size=model.vocab_size)
        held_out = data.load(task, ids).val
        assert held_out is not None
        found.append(evaluate_sequences(model, held_out, model.config.ctx_len, None, SEQUENCES, "cpu").accuracy)
    return found


def chance(n: int) -> float:
    """Return the accuracy of ruling out values that were answered."""
    return float(np.mean(1.0 / np.arange(1, n + 1)))


def table(found: dict[Arm, list[list[float]]], pairs: list[int]) -> str:
    """Return mean and half the range over seeds in Markdown."""
    heads = " | ".join(f"{n} pairs" if n > 1 else "1 pair" for n in pairs)
    lines = [f"| model | head-QK | seeds | {heads} |", f"| --- | ---: | ---: |{' ---: |' * len(pairs)}"]
    for (model, head_qk), rows in sorted(found.items()):
        values = np.array(rows)
        half = np.ptp(values, 0) / 2
        shown = [
            f"{m:.3f}" + (f" ± {s:.3f}" if len(rows) > 1 else "") for m, s in zip(values.mean(0), half, strict=True)
        ]
        lines.append(f"| {model} | {head_qk} | {len(rows)} | {' | '.join(shown)} |")
    lines.append(f"| ruling out | | | {' | '.join(f'{chance(n):.3f}' for n in pairs)} |")
    return "\n".join(lines)


def figure(found: dict[Arm, list[list[float]]], pairs: list[int], path: Path) -> None:
    """Write accuracy against pairs as a PNG: a colour a model, a dash a form of head-QK."""
    from matplotlib.figure import Figure

    from analysis.plots.style import paper, style

    with paper():
        drawn = Figure(figsize=(6.4, 3.8))
        ax = drawn.subplots()
        names = sorted({model for model, _ in found})
        for (model, head_qk), rows in sorted(found.items()):
            look = style(names.index(model))
            dash = {"sum": "--", "max": "-."}.get(head_qk.partition(" ")[2], "-")
            ax.plot(pairs, np.mean(rows, 0), dash, marker=look.mpl_marker, color=look.colour, markersize=4)
        for place, name in enumerate(names):
            ax.plot([], [], color=style(place).colour, marker=style(place).mpl_marker, label=name)
        ax.plot([], [], "--", color="grey", label="head-QK, sum")
        ax.plot([], [], "-.", color="grey", label="head-QK, max")
        ax.plot(pairs, [chance(n) for n in pairs], ":", color="black", label="ruling out")
        ax.set_xscale("log", base=2)
        ax.set_xticks(pairs, [str(n) for n in pairs])
        ax.set(xlabel="pairs of a sequence", ylabel="accuracy of the values", ylim=(0, 1.03))
        drawn.legend(loc="outside right center")
        drawn.savefig(path, dpi=160)


def main(argv: list[str]) -> None:
    """Print the table, and draw it if asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall", description=__doc__)
    parser.add_argument("study", type=Path, help="folder of runs of data=recall")
    parser.add_argument("--pairs", default="1,2,4,8", help="numbers of pairs (1,2,4,8)")
    parser.add_argument("--figure", type=Path, metavar="FILE.png")
    options = parser.parse_args(argv)
    pairs = [int(word) for word in options.pairs.split(",")]
    found: dict[Arm, list[list[float]]] = {}
    for run in runs.find(options.study):
        if run.status == "complete":
            model = run.config["model"]
            width = model["head_qk_dim"]
            arm = model["name"], f"{width} {model['head_qk']}" if width else "off"
            found.setdefault(arm, []).append(accuracies(run, pairs))
    if not found:
        raise UserError(f"{options.study} has no complete run of data=recall")
    print(table(found, pairs))
    if options.figure:
        figure(found, pairs, options.figure)


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
