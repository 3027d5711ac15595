"""One session of a run: from its directory to its products."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import torch

from rwkv_lab import data, models, tracking
from rwkv_lab.config import check, derived
from rwkv_lab.config.errors import UserError
from rwkv_lab.data import Corpus
from rwkv_lab.inference import sampling
from rwkv_lab.ops.waiting import sharing_cores
from rwkv_lab.runs import manifest, provenance
from rwkv_lab.training import checkpoint, device, lineage, memory, throughput
from rwkv_lab.training.context import RunContext
from rwkv_lab.training.distributed.layout import LAYOUTS
from rwkv_lab.training.distributed.world import World
from rwkv_lab.training.early_stop import EarlyStop
from rwkv_lab.training.loss_scaling import LossScaler
from rwkv_lab.training.metrics import MetricsLog
from rwkv_lab.training.trainer import NotFinite, StoppedEarly, Training, train
from rwkv_lab.util import console
from rwkv_lab.util.console import count, say, warn
from rwkv_lab.util.io import write_atomic

SETTINGS_OF_THE_CALL = ("rerun", "dry_run", "runs_dir", "stop")
SAMPLE_TEMPERATURE = 0.8
INPUTS = ("config.yaml", "tokenizer.json")
PRODUCTS = (*INPUTS, "model.safetensors", "metrics.csv")


class OutOfMemory(Exception):
    """Memory was not enough; the message says what to change."""


def run(context: RunContext, world: World) -> dict[str, Any]:
    """Train the run to its end, write its products and return the manifest's ``result``; empty on ranks that do not
    write.

    Raises Stopped, StoppedEarly, NotFinite, OutOfMemory, and UserError for what is found wrong before training.
    """
    training = None
    try:
        training = prepare(context, world)
        with sharing_cores(training.resolved.threads):
            if not world.writes:
                train(training, None, None)
                return {}
            announce(training)
            log = _open_log(training)
            # A tracker takes the pictures with it when it closes.
            with tracking.log_in_background(context.path, training.progress.step):
                result = _train_and_record(training, log)
                decorate("the sample", lambda: write_sample(training))
    except Exception as error:
        if training is not None and _is_out_of_memory(error):
            sizes = dict(training.model.named_parameters())
            raise OutOfMemory(memory.advice(context.config, sizes, training.model.vocab_size)) from error
        raise
    return result


def prepare(context: RunContext, world: World) -> Training:
    """Return everything the loop needs, with the newest checkpoint restored; run.json shows a running run from here."""
    config, path = context.config, context.path
    total = derived.total_steps(config)
    derived.check_shares(config.trainer, world.size)
    lr = lineage.rates(config)
    resolved = device.resolve(config, context.manifest.get("resolved") if context.resuming else None)
    device.apply(resolved)
    if context.resuming and (sentence := device.another_card(context.manifest.get("hardware", {}), resolved)):
        warn(sentence)
    saved = checkpoint.newest(path / "checkpoints", warn) if context.resuming else None
    corpus = _corpus(context, stored=saved is not None)
    data.require_length(corpus, config.model.ctx_len)
    _require_same_data(context, corpus)
    if saved is None and not context.resuming:
        took = lineage.inherit(context, resolved, corpus.sha256, world.size) if world.writes else False
        saved = checkpoint.newest(path / "checkpoints", warn) if world.broadcast(took) else None
    if saved is None and (note := models.check_init(config.model, corpus.tokenizer, config.objective.extra_tokens)):
        corpus.notes.append(note)
    corpus.notes.extend(note for note in config.objective.notes() if note not in corpus.notes)
    torch.manual_seed(config.seed)
    try:
        model = models.construct(
            config.model,
            corpus.tokenizer.vocab_size + config.objective.extra_tokens,
            seed=config.seed,
            backend=resolved.ops_backend,
            tokenizer=corpus.tokenizer,
            warm=saved is None,
        )
        device.dress(model, config.trainer, resolved)
        layout = LAYOUTS[config.trainer.strategy](model, config.objective.loss, world, config.trainer, resolved.device)
    except Exception as error:
        if _is_out_of_memory(error):
            raise OutOfMemory(_advice_before_building(context, corpus)) from error
        raise
    optimizers = config.optimizer.build({n: p for n, p in model.named_parameters() if p.requires_grad})
    scaler = LossScaler(optimizers, resolved.device, resolved.precision == "fp16")
    training = Training(context, resolved, corpus, model, layout, optimizers, scaler, lr, total, world)
    training.peak_flops = throughput.peak_flops(resolved) * world.size
    if saved is not None:
        training.progress = saved.progress
        try:
            tensors = saved.tensors(model)
            checkpoint.restore(tensors, model, optimizers)
            scaler.restore(tensors, saved.progress.skipped)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"the checkpoints in {path} do not fit this version's model ({str(error).splitlines()[0]}): "
                "start afresh with rerun=true"
            ) from None
    if world.writes:
        write_atomic(path / "config.yaml", config_text(context).encode())
        write_atomic(path / "tokenizer.json", corpus.tokenizer.to_json().encode())
        context.claim.record(**_manifest(training))
    return training


def config_text(context: RunContext) -> str:
    """Return the resolved configuration as YAML, without what belongs to this call only."""
    from omegaconf import OmegaConf

    content = check.plain(context.config)
    for key in SETTINGS_OF_THE_CALL:
        content.pop(key)
    return OmegaConf.to_yaml(OmegaConf.create(content))


def _corpus(context: RunContext, stored: bool) -> Corpus:
    """Return the run's text; with ``stored``, by the tokenizer of the session before if that is whole."""
    file, tokenizer = context.path / "tokenizer.json", None
    if stored and file.exists():
        try:
            if not manifest.intact(context.path, file.name, context.manifest):
                raise UserError("its checksum does not match")
            tokenizer = data.from_json(file.read_text(encoding="utf-8", errors="replace"))
        except (UserError, RecursionError):
            warn(f"{file} is damaged; the tokenizer is made from the data again")
    return data.load(context.config.data, context.config.tokenizer, tokenizer)


def _require_same_data(context: RunContext, corpus: Corpus) -> None:
    earlier = (context.manifest.get("data") or {}).get("sha256")
    if earlier and earlier != corpus.sha256:
        raise UserError(f"the data of {context.path.name} changed since it was started: start afresh with rerun=true")


def _advice_before_building(context: RunContext, corpus: Corpus) -> str:
    from rwkv_lab.models.factory import skeleton

    model = skeleton(context.config.model, corpus.tokenizer.vocab_size + context.config.objective.extra_tokens)
    return memory.advice(context.config, dict(model.named_parameters()), model.vocab_size)


def _manifest(training: Training) -> dict[str, Any]:
    config, corpus, context = training.config, training.corpus, training.context
    prediction = config.schedule.prediction()
    return {
        "id": context.path.name.rsplit("-", 1)[-1],
        "name": context.path.name,
        "study": config.study,
        "status": "running",
        "objective": config.objective.name,
        "reason": None,
        "overrides": context.overrides,
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
        "files": manifest.checksums(context.path, INPUTS),
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "flops_per_token": models.flops_per_token(training.model),
        "peak_flops": training.peak_flops,
        "steps": training.total,
        "tokens": training.total * derived.tokens_per_step(config),
        "started": context.manifest.get("started") or provenance.now(),
        "ended": None,
        "pid": os.getpid(),
        **({"predicted": dataclasses.asdict(prediction)} if prediction else {}),
    }


def announce(training: Training) -> None:
    """Print one line for everything that was chosen automatically, one for what will run."""
    resolved, corpus, recorded = training.resolved, training.corpus, training.context.manifest
    say(
        f"device {resolved.device} ({recorded['hardware']['name']}, {resolved.threads} threads), precision "
        f"{resolved.precision}, ops {resolved.ops_backend}{', compiled blocks' if resolved.compile else ''}"
    )
    for note in corpus.notes:
        say(f"note: {note}")
    held_out = count(len(corpus.val)) if corpus.val else "no"
    say(
        f"{training.config.model.name}: {count(recorded['parameters'])} parameters; {training.config.data.name}: "
        f"{count(len(corpus.train))} training and {held_out} held-out tokens, "
        f"vocabulary {corpus.tokenizer.vocab_size}; {training.total} steps"
    )
    if training.progress.step > 0:
        say(f"resuming from step {training.progress.step}")


def _open_log(training: Training) -> MetricsLog:
    """Return the log with the rows of earlier sessions; what of them is lost or damaged is a warning."""
    progress = training.progress
    optional = training.config.objective.measures(training.corpus.val or training.corpus.train)
    optional += ("skipped_updates",) if training.scaler.enabled else ()
    log = MetricsLog(training.folder / "metrics.csv", progress.step, optional)
    if progress.step >= training.config.trainer.log_every and log.kept == 0:
        warn(f"metrics.csv has no rows up to step {progress.step}: they are lost, the weights are not")
    elif progress.rows_sha256 not in (None, log.sha256):
        warn(
            f"metrics.csv was damaged or edited: rows up to step {progress.step} are not those that were logged; the "
            "weights are not affected"
        )
    return log


def _train_and_record(training: Training, log: MetricsLog) -> dict[str, Any]:
    """Train to the end and record the result; from then on nothing can undo it."""
    path = training.folder
    forecast = tracking.LiveForecast(path, training.total, training.progress.step)
    live = console.Progress(training.total, training.progress.step, note=forecast.note)
    live.start()
    try:
        train(training, log, live, EarlyStop(training.context, training.lr) if training.config.stop else None)
        live.close()
        log.sync()
        models.save(training.model, path / "model.safetensors")
        result = measure(training, {name: float(cell) for name, cell in log.last.items() if cell})
    except StoppedEarly as verdict:
        training.context.claim.record(
            status="stopped early", reason=str(verdict), ended=provenance.now(), seconds=training.progress.seconds
        )
        raise
    finally:
        live.close()
        forecast.close()
        log.close()
    training.context.claim.record(
        status="complete",
        ended=provenance.now(),
        seconds=training.progress.seconds,
        peak_memory_bytes=device.peak_memory_bytes(training.resolved),
        result=result,
        notes=notes(training, result),
        files=manifest.checksums(path, PRODUCTS),
    )
    return result


def measure(training: Training, row: dict[str, float]) -> dict[str, Any]:
    """Return the manifest's result: losses in nats per token, bits per byte, and how the held-out text was read."""
    config = training.config
    with training.resolved.autocast():
        full = config.objective.evaluate_final(
            training.model,
            training.corpus.val or training.corpus.train,
            training.ctx_len,
            max(config.trainer.batch_size, 16),
            training.resolved.device,
            derived.final_tokens(config.trainer),
        )
    if not math.isfinite(full.loss):
        raise NotFinite(f"the held-out loss became {full.loss} with the last update; try a lower schedule.lr_init")
    return {
        "train_loss": row.get("train_loss", math.nan),
        "val_loss": full.loss,
        # Token ids that came without text have no bytes to count; JSON has no NaN.
        "val_bpb": full.bpb if math.isfinite(full.bpb) else None,
        **({"val_accuracy": full.accuracy} if math.isfinite(full.accuracy) else {}),
        "fixed_val_loss": row.get("val_loss", math.nan),
        "fixed_val_bpb": row.get("val_bpb", math.nan),
        "tokens_per_second": training.progress.tokens / max(training.progress.seconds, 1e-9),
        "eval": full.method + ("" if training.corpus.val else " of the training text: there is no held-out split"),
    }


def notes(training: Training, result: dict[str, Any]) -> list[str]:
    """Return what a reader of the result should know, one sentence each."""
    vocab_size = training.corpus.tokenizer.vocab_size
    uniform = math.log(vocab_size)
    if result["val_loss"] <= uniform:
        return []
    return [
        f"val_loss {result['val_loss']:.4f} is above {uniform:.4f} = ln {vocab_size}, the loss of a model that gives "
        "every token the same probability: nothing was learned; try a lower schedule.lr_init or more steps"
    ]


def decorate(what: str, work: Callable[[], object]) -> None:
    """Do ``work`` that a complete run can do without; a failure is one warning."""
    try:
        work()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warn(f"{what} could not be made ({reason}); the run is complete all the same")


def write_sample(training: Training) -> None:
    """Write sample.txt, text from the start of a line, or images.png; a model that cannot continue a text has none."""
    length = training.config.trainer.sample_length
    if not length or training.config.objective.bidirectional:
        return
    tokenizer = training.corpus.tokenizer
    generator = torch.Generator(training.resolved.device).manual_seed(training.config.seed)
    if drawings := training.config.data.drawings(training.corpus):
        with training.resolved.autocast():
            drawn = [
                sampling.generate_rows(training.model, each.prompts, each.length, each.choices, generator)
                for each in drawings
            ]
        write_atomic(training.folder / "images.png", training.config.data.picture(training.corpus, drawn))
        return
    with training.resolved.autocast():
        ids = sampling.generate(
            training.model, tokenizer.start(), length, generator=generator, temperature=SAMPLE_TEMPERATURE
        )
    text = tokenizer.decode(ids)
    write_atomic(training.folder / "sample.txt", text.encode("utf-8", "replace"))


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory of Python, of a GPU, or of torch's CPU allocator was not enough."""
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
