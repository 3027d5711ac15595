"""One session of a run: from a claimed directory to its final products."""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rwkv_lab import data, models, tracking
from rwkv_lab.config import derived
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config
from rwkv_lab.data import Corpus
from rwkv_lab.models.config import ModelConfig
from rwkv_lab.models.lm import LM
from rwkv_lab.runs import provenance
from rwkv_lab.runs.store import Claim
from rwkv_lab.training import checkpoint, device, finish
from rwkv_lab.training.distributed.world import World
from rwkv_lab.training.fitted import read_proposal
from rwkv_lab.training.metrics import MetricsLog
from rwkv_lab.training.trainer import Listeners, Row, Training, train
from rwkv_lab.util import console
from rwkv_lab.util.console import say, warn
from rwkv_lab.util.paths import write_atomic


def build_model(config: Config, vocab_size: int, backend: str, initialise: bool = True) -> LM:
    """The configured model, initialised from ``config.seed``; without ``init_from`` where a checkpoint follows."""
    model_config: ModelConfig = config.model
    fields = {field.name: getattr(model_config, field.name) for field in dataclasses.fields(model_config)}
    if not initialise:
        fields |= {key: None for key in ("init_from", "time_vectors_from") if key in fields}
    name = fields.pop("name")
    return models.build(name, vocab_size=vocab_size, seed=config.seed, backend=backend, **fields)


def rate_function(config: Config, total: int) -> Callable[[int], float]:
    """The rate of every update, as a function of its index; a Mistake where a fitted schedule has another length."""
    return config.schedule.build(total)


def prepare(config: Config, claim: Claim, overrides: list[str], resolved_yaml: str, world: World) -> Training:
    """Everything the loop needs, with the newest checkpoint restored; the manifest says running from here on."""
    total = derived.total_steps(config)
    derived.check_shares(config.trainer, world.size)
    lr = rate_function(config, total)
    resolved = device.resolve(config, claim.manifest.get("resolved") if claim.state == "resume" else None)
    device.apply(resolved)
    saved = checkpoint.newest(claim.path / "checkpoints", warn) if claim.state == "resume" else None
    corpus = _corpus(config, claim.path, resuming=saved is not None)
    data.require_length(corpus, config.model.ctx_len)
    torch.manual_seed(config.seed)
    model = build_model(config, corpus.tokenizer.vocab_size, resolved.ops_backend, initialise=saved is None)
    model = model.to(resolved.device)
    optimizer = config.optimizer.build(model)
    training = Training(config, resolved, corpus, model, optimizer, lr, total, claim.path, world)
    if saved is not None:
        training.progress = saved[0]
        try:
            checkpoint.restore(saved[1], model, optimizer)
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"the checkpoints in {claim.path} do not fit this version's model ({str(error).splitlines()[0]}): "
                "start afresh with rerun=true"
            ) from None
    if world.writes:
        write_atomic(claim.path / "config.yaml", resolved_yaml.encode())
        write_atomic(claim.path / "tokenizer.json", corpus.tokenizer.to_json().encode())
        claim.record(**_manifest(training, claim, overrides))
    return training


def _corpus(config: Config, folder: Path, resuming: bool) -> Corpus:
    stored = folder / "tokenizer.json"
    tokenizer = None
    if resuming and stored.exists():
        try:
            tokenizer = data.from_json(stored.read_text(encoding="utf-8", errors="replace"))
        except UserError:
            warn(f"{stored} is damaged; the tokenizer is made from the data again")
    return data.load(config.data, config.tokenizer, tokenizer)


def _manifest(training: Training, claim: Claim, overrides: list[str]) -> dict[str, Any]:
    config, corpus = training.config, training.corpus
    predicted = {}
    if config.schedule.name == "fitted":
        proposal = read_proposal(config.schedule.fit)
        kept = {key: value for key, value in dataclasses.asdict(proposal).items() if key != "rates"}
        predicted = {"predicted": kept | {"fit": str(config.schedule.fit)}}
    earlier = claim.manifest.get("data", {}).get("sha256")
    if earlier and earlier != corpus.sha256:
        raise UserError(f"the data of {claim.path.name} changed since it was started: start afresh with rerun=true")
    return {
        "id": claim.path.name.rsplit("-", 1)[-1],
        "name": claim.path.name,
        "study": config.study,
        "status": "running",
        "reason": None,
        "overrides": overrides,
        "code": provenance.code_fingerprint(),
        "git": provenance.git_state(),
        "versions": provenance.versions(),
        "hardware": device.hardware(training.resolved),
        "resolved": dataclasses.asdict(training.resolved),
        "world_size": training.world.size,
        "data": {
            "name": config.data.name,
            "vocab_size": corpus.tokenizer.vocab_size,
            "sha256": corpus.sha256,
            "train_tokens": len(corpus.train),
            "val_tokens": len(corpus.val) if corpus.val else 0,
            "notes": corpus.notes,
        },
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "flops_per_token": models.flops_per_token(training.model),
        "steps": training.total,
        "tokens": training.total * config.trainer.batch_size * training.ctx_len,
        "started": claim.manifest.get("started") or provenance.now(),
        "ended": None,
        "pid": os.getpid(),
        **predicted,
    }


def announce(training: Training, resuming: bool) -> None:
    """One line for everything that was chosen automatically, one for what will run."""
    resolved, corpus = training.resolved, training.corpus
    machine = device.hardware(resolved)["name"]
    say(
        f"device {resolved.device} ({machine}, {resolved.threads} threads), precision {resolved.precision}, "
        f"ops {resolved.ops_backend}"
    )
    for note in corpus.notes:
        say(f"note: {note}")
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    held_out = console.count(len(corpus.val)) if corpus.val else "no"
    say(
        f"{training.config.model.name}: {console.count(parameters)} parameters; {training.config.data.name}: "
        f"{console.count(len(corpus.train))} training and {held_out} held-out tokens, "
        f"vocabulary {corpus.tokenizer.vocab_size}; {training.total} steps"
    )
    if resuming:
        say(f"resuming from step {training.progress.step}")


def run(training: Training, claim: Claim) -> dict[str, Any]:
    """Trains to the end, writes the final products and returns the manifest's ``result``."""
    config, world = training.config, training.world
    resuming = training.progress.step > 0
    if not world.writes:
        train(training, None, Listeners(lambda row: None, lambda progress, loss, lr: None))
        return {}
    announce(training, resuming)
    metrics = MetricsLog(claim.path / "metrics.csv", training.progress.step)
    if training.progress.step >= config.trainer.log_every and metrics.kept == 0:
        warn(f"metrics.csv has no rows up to step {training.progress.step}: they are lost, the weights are not")
    with tracking.following(config.tracker, claim.path, training.progress.step):
        return _run(training, claim, metrics)


def _run(training: Training, claim: Claim, metrics: MetricsLog) -> dict[str, Any]:
    live = console.Progress(training.total, training.progress.step)

    def logged(row: Row) -> None:
        if row["val_bpb"] is not None:
            live.val_bpb = float(row["val_bpb"])

    def stepped(progress: checkpoint.Progress, loss: float, lr: float) -> None:
        live.update(progress.step, progress.tokens, loss, lr)

    live.start()
    try:
        train(training, metrics, Listeners(logged, stepped))
        live.close()
        partial = claim.path / "model.partial"
        models.save(training.model, partial)
        os.replace(partial, claim.path / "model.safetensors")
        result = finish.measure(training, _last_row(claim))
        finish.sample(training)
    finally:
        live.close()
        metrics.close()
    claim.record(
        status="complete",
        ended=provenance.now(),
        seconds=training.progress.seconds,
        peak_memory_bytes=device.peak_memory_bytes(training.resolved),
        result=result,
    )
    return result


def _last_row(claim: Claim) -> Row:
    """The last row as it is on disk, so that a run stopped after its last update ends with the same digits."""
    from rwkv_lab.runs import read_metrics

    columns = read_metrics(claim.path / "metrics.csv")
    return {name: float(values[-1]) if len(values) else math.nan for name, values in columns.items()}
