"""What a user reads about a run: the summary at its end, the same when it is found complete, and a dry run."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config, TrainerConfig
from rwkv_lab.runs.manifest import foretold
from rwkv_lab.util.console import count, duration, say, table_lines
from rwkv_lab.util.paths import as_typed
from rwkv_lab.util.units import ago

# Devices of a plan: how many, bytes of each, and its bf16 FLOPs a second, those of an A100.
CLUSTERS: list[tuple[str, int, float, float | None]] = [
    ("1 x 80 GB", 1, 80e9, 312e12),
    ("8 x 40 GB", 8, 40e9, 312e12),
    ("8 x 80 GB", 8, 80e9, 312e12),
]
UTILISATION = 0.4
MOST_RATES = 10_000  # of a schedule, evaluated for its highest


def shown(path: Path) -> str:
    """``path`` as one would type it from the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def complete(path: Path, manifest: dict[str, Any], again: bool) -> None:
    """The summary of a complete run; ``again`` where it was complete before this call."""
    result = manifest["result"]
    if again:
        say(f"already complete ({manifest['ended']}); rerun=true trains it afresh")
    sample = path / "sample.txt"
    if sample.exists():
        say("\nsample " + "-" * 60 + "\n" + sample.read_text(errors="replace").strip("\n") + "\n" + "-" * 67)
    for note in manifest.get("notes") or ():
        say(f"note: {note}")
    quality = f"val_bpb {_bpb(result['val_bpb'])} bits/byte"
    if "val_accuracy" in result:
        quality = f"val_accuracy {result['val_accuracy']:.4f}"
    say(f"val_loss {result['val_loss']:.4f} nats/token   {quality}   ({result['eval']})")
    say(
        f"train_loss {result['train_loss']:.4f}   {count(manifest['tokens'])} tokens in {duration(manifest['seconds'])}"
        f"   {count(result['tokens_per_second'])} tokens/s"
    )
    for line in prediction_lines(manifest):
        say(line)
    place = shown(path)
    say(f"run      {place}")
    say(as_typed(f"next     python -m analysis compare {shown(path.parent)}"))
    say(as_typed(f"         python -m analysis fit {place}"))
    objective = registry.members("objective").get(manifest.get("objective", "lm"))
    corpus = registry.members("data").get(str((manifest.get("data") or {}).get("name")))
    if usage := getattr(corpus, "usage", None) or getattr(objective, "usage", None):
        say(as_typed(f"         {usage.format(run=place)}"))


def _bpb(value: float | None) -> str:
    return "unknown" if value is None or value != value else f"{value:.4f}"


def prediction_lines(manifest: dict[str, Any]) -> list[str]:
    """Return what a fit predicted for the run, what was measured, and whether it beat the best run fitted."""
    found = foretold(manifest)
    if found is None or found.measured is None:
        return []
    lines = [
        f"predicted {found.loss:.4f} ({found.level:.0%} interval {found.low:.4f} to {found.high:.4f}, law {found.law}) "
        f"for {found.column}   measured {found.measured:.4f}: {found.verdict} the interval"
    ]
    if found.best_loss is not None:
        gain = found.best_loss - found.measured
        how = f"beaten by {gain:.4f}" if gain > 0 else f"not beaten: this run ended {-gain:.4f} above it"
        length = f", {found.best_steps} updates" if found.best_steps else ""
        lines.append(f"best run fitted ({found.best_run}{length}) {found.best_loss:.4f}: {how}")
    return lines


def dry_run(config: Config) -> None:
    """Print what the configuration would run: sizes, cost, memory and place. Nothing is trained or written."""
    from omegaconf import OmegaConf

    from rwkv_lab import data
    from rwkv_lab.config import check, run_hash
    from rwkv_lab.util.paths import runs_dir

    say(OmegaConf.to_yaml(OmegaConf.create(check.plain(config))))
    given: int | None = getattr(config.tokenizer, "vocab_size", None)
    try:
        name = run_hash.run_name(config, run_hash.named_files(config))
        corpus = data.load(config.data, config.tokenizer)
        data.require_length(corpus, config.model.ctx_len)
        vocab_size = corpus.tokenizer.vocab_size
    except UserError as missing:
        # A plan for another machine, where the corpus is.
        if given is None:
            raise
        say(f"note: {missing}; planned with tokenizer.vocab_size={given}")
        name, vocab_size = "not known without the corpus", given
    for line in plan(config, vocab_size + config.objective.extra_tokens):
        say(line)
    say(f"run directory     {shown(runs_dir(config.runs_dir) / config.study / name)}")


def plan(config: Config, vocab_size: int) -> Iterator[str]:
    """Yield what a run takes, and settings that fit this machine and some clusters, for a model's vocabulary."""
    from rwkv_lab import models
    from rwkv_lab.config import derived
    from rwkv_lab.models.factory import skeleton
    from rwkv_lab.training import device, lineage
    from rwkv_lab.training.memory import RESERVED, Planner

    total = derived.total_steps(config)
    rate = lineage.rates(config)
    rates = [rate(step) for step in (*range(0, total, max(1, total // MOST_RATES)), total - 1)]
    model = skeleton(config.model, vocab_size)
    tokens, flops = total * derived.tokens_per_step(config), models.flops_per_token(model)
    parameters = dict(model.named_parameters())
    yield f"parameters        {sum(parameter.numel() for parameter in parameters.values()):,}"
    yield f"FLOPs per token   {flops:,.0f} (forward and backward)"
    yield f"length            {total:,} steps, {tokens:,} tokens, {flops * tokens:.3g} FLOPs"
    yield f"learning rate     {rates[0]:.3g} first, {max(rates):.3g} highest, {rates[-1]:.3g} last"
    # What compiling saves is not counted, and trying it takes its time.
    quick = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, compile="false"))
    resolved = device.resolve(quick)
    here, processes = device.hardware(resolved), config.trainer.processes or 1
    own = dataclasses.replace(config.trainer, precision=resolved.precision)  # type: ignore[arg-type]
    planner = Planner(dataclasses.replace(config, trainer=own), parameters, vocab_size)
    again = dataclasses.replace(own, activation_checkpointing=True)
    found, less = planner.need(own, processes), planner.need(again, processes)
    rows = [[part, gigabytes(size), gigabytes(less.parts[part])] for part, size in found.parts.items()]
    rows.append(["most at once", gigabytes(found.peak), gigabytes(less.peak)])
    heading = ["memory a device", "as configured", "activation_checkpointing"]
    yield from table_lines(heading, rows)
    size = here["memory_bytes"] or math.inf
    fits = "fits" if found.peak <= (1 - RESERVED) * size else "does not fit"
    yield f"this machine      {here['name']}, {gigabytes(size)}: {fits}"
    clusters = [*CLUSTERS] if fits == "fits" else [("this machine", 1, size, None), *CLUSTERS]
    halves = planner if own.precision in device.HALVES else None
    rows = []
    for name, devices, bytes_each, peak in clusters:
        if peak is not None and halves is None:
            bf16 = dataclasses.replace(own, precision="bf16")
            halves = Planner(dataclasses.replace(config, trainer=bf16), parameters, vocab_size)
        chosen = (planner if peak is None or halves is None else halves).fitting(devices, bytes_each)
        if chosen is None:
            rows.append([name, "does not fit", "", ""])
            continue
        trainer, memory = chosen
        cost = flops * tokens * (4 / 3 if trainer.activation_checkpointing else 1)
        time = ago(cost / (devices * peak * UTILISATION)) if peak else ""
        rows.append([name, settings_of(trainer), gigabytes(memory.peak), time])
    yield from table_lines(["on", "settings", "memory a device", f"time at {UTILISATION:.0%} of peak"], rows, left=2)


def settings_of(trainer: TrainerConfig) -> str:
    """Return how devices share the batch, as one would type it."""
    words = [f"trainer={trainer.strategy}"] if trainer.strategy else []
    words += [f"trainer.batch_size={trainer.batch_size}", f"trainer.accumulate={trainer.accumulate}"]
    words += ["trainer.activation_checkpointing=true"] if trainer.activation_checkpointing else []
    return " ".join(words)


def gigabytes(size: float) -> str:
    """Return bytes in GB of 10^9, or in MB below one."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
