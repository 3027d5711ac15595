"""What a user reads about a run: the summary at its end, the same when it is found complete, and a dry run."""

from pathlib import Path
from typing import Any

from rwkv_lab.config import registry
from rwkv_lab.config.schema import Config
from rwkv_lab.runs.manifest import foretold
from rwkv_lab.util.console import count, duration, say
from rwkv_lab.util.paths import as_typed


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


def dry_run(config: Config, path: Path) -> None:
    """Print what the configuration would run: sizes, cost, memory and place. Nothing is trained or written."""
    from omegaconf import OmegaConf

    from rwkv_lab import data, models
    from rwkv_lab.config import check, derived
    from rwkv_lab.models.factory import skeleton
    from rwkv_lab.training import device, lineage

    say(OmegaConf.to_yaml(OmegaConf.create(check.plain(config))))
    total = derived.total_steps(config)
    rates = [*map(lineage.rates(config), range(total))]
    corpus = data.load(config.data, config.tokenizer)
    data.require_length(corpus, config.model.ctx_len)
    model = skeleton(config.model, corpus.tokenizer.vocab_size + config.objective.extra_tokens)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    memory_bytes = sum(device.estimate(config, dict(model.named_parameters()), model.vocab_size).values())
    tokens = total * config.trainer.batch_size * config.model.ctx_len
    flops = models.flops_per_token(model)
    say(f"parameters        {parameters:,}")
    say(f"FLOPs per token   {flops:,.0f} (forward and backward)")
    say(f"length            {total:,} steps, {tokens:,} tokens, {flops * tokens:.3g} FLOPs")
    say(f"learning rate     {rates[0]:.3g} first, {max(rates):.3g} highest, {rates[-1]:.3g} last")
    say(f"memory, about     {memory_bytes / 2**20:,.0f} MiB")
    say(f"run directory     {shown(path)}")
