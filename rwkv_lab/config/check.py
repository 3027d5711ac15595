"""The final check of a composed configuration: strict types, known keys, allowed ranges. Imports no torch."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rwkv_lab import data
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.config.omegaconf_messages import sentence
from rwkv_lab.config.schema import GROUPS, SCHEDULE_SCHEMAS, Config, TrainerConfig, schema_of, without_its_group
from rwkv_lab.data import config as data_config
from rwkv_lab.models import config as model_config
from rwkv_lab.models.registry import MODELS
from rwkv_lab.training import schedules

_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
MOST_THREADS = 1024
PRECISIONS = ("auto", "fp32", "tf32", "bf16")


def parse_count(key: str, value: Any) -> int:
    """``2M``, ``2e6``, ``2_000_000`` and 2000000 as one integer above 0; a Mistake naming ``key`` otherwise."""
    text = str(value).strip().lower().replace("_", "")
    unit = _UNITS.get(text[-1:], 1)
    try:
        count = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        count = math.nan
    if isinstance(value, bool) or not math.isfinite(count) or count < 1 or count != round(count):
        raise UserError(f"{key}={value} is no whole number above 0; write 500000, 5e5, 500k, 2M or 1.5B")
    return int(count)


def check(composed: DictConfig) -> Config:
    """The configuration as checked dataclasses; a Mistake, one sentence, for whatever is wrong with it."""
    try:
        content: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise UserError(sentence(error)) from None
    groups = {group: _typed(group, content.pop(group, None)) for group in GROUPS}
    top: Any = OmegaConf.to_container(_merge("", OmegaConf.structured(Config), content), throw_on_missing=False)
    config = Config(**(top | groups))
    _check_top(config)
    _check_trainer(config)
    _check_optimizer(config)
    _check_schedule(config)
    _choice("tracker.name", config.tracker.name, ("wandb", "none"))
    _choice("tracker.mode", config.tracker.mode, ("offline", "online", "disabled"))
    _choice("ops.backend", config.ops.backend, ("auto", "native", "reference"))
    model_config.check(config.model)
    data_config.check(config.data, config.tokenizer)
    _check_length(config)
    return config


def named_files(config: Config) -> dict[str, str]:
    """sha256 of every file a key names, and of the built-in corpus: what identity counts instead of the names."""
    return data.content_hashes(config.data, config.tokenizer) | {
        key: data.file_sha256(path, key) for key, path in _file_keys(config).items()
    }


def _file_keys(config: Config) -> dict[str, str]:
    keys = {}
    for key in ("model.init_from", "model.time_vectors_from", "schedule.fit"):
        group, name = key.split(".")
        path = getattr(getattr(config, group), name, None)
        if path:
            weights = Path(path) / "model.safetensors"
            keys[key] = str(weights) if Path(path).is_dir() else path
    return keys


def _typed(group: str, content: Any) -> Any:
    """A group's content as an instance of its dataclass."""
    if not isinstance(content, dict):
        raise UserError(f"the group {group} is missing or has no fields: choose one with {group}=...")
    named: dict[str, Mapping[str, Any]] = {"model": MODELS, "schedule": SCHEDULE_SCHEMAS}
    known = named.get(group, {})
    name = str(content.get("name"))
    if known and name not in known:
        raise UserError(f"{group}.name={name} is unknown{nearest(name, known)}: choose one of {', '.join(known)}")
    schema = OmegaConf.structured(schema_of(group, name))
    merged = _merge(f"{group}.", schema, content)
    missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
    if missing:
        raise UserError(f"{group}.{missing[0]} must be given")
    return OmegaConf.to_object(merged)


def _merge(prefix: str, schema: DictConfig, content: dict) -> DictConfig:
    known = [str(name) for name in schema]
    for key in content:
        if key not in known:
            place = f"{prefix[:-1]} '{content['name']}'" if content.get("name") else prefix[:-1] or "the top level"
            likely = ("" if prefix else without_its_group(str(key))) or nearest(str(key), known)
            raise UserError(f"{prefix}{key} is unknown{likely}: {place} has {', '.join(known)}")
    try:
        return OmegaConf.merge(schema, content)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(sentence(error, f"{prefix}{error.full_key or 'fields'}")) from None


def _choice(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value} is unknown{nearest(value, allowed)}: choose one of {', '.join(allowed)}")


def _at_least(key: str, value: float | None, low: float) -> None:
    if value is not None and not (math.isfinite(value) and value >= low):
        raise UserError(f"{key}={value} is too small or no number: it must be at least {low}")


def _check_top(config: Config) -> None:
    if not config.study or set(config.study) & set("/\\\0") or config.study.startswith("."):
        raise UserError(f"study={config.study} is not a folder name: use letters, digits, '-' and '_'")
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed={config.seed} is out of range: it must be from 0 to 2^63 - 1")


def _check_trainer(config: Config) -> None:
    trainer = config.trainer
    if trainer.steps is not None:
        trainer.steps = parse_count("trainer.steps", trainer.steps)
        # Both lengths cannot count: a run stated in updates is the same run whatever tokens says.
        trainer.tokens = None
    else:
        trainer.tokens = parse_count("trainer.tokens", trainer.tokens)
    trainer.eval_tokens = parse_count("trainer.eval_tokens", trainer.eval_tokens)
    if trainer.final_tokens is not None:
        trainer.final_tokens = parse_count("trainer.final_tokens", trainer.final_tokens)
    for key, low in (
        ("batch_size", 1),
        ("accumulate", 1),
        ("threads", 1),
        ("log_every", 1),
        ("processes", 1),
        ("timeout", 1),
    ):
        _at_least(f"trainer.{key}", getattr(trainer, key), low)
    for key in ("clip", "eval_every", "checkpoint_every", "sample_length"):
        _at_least(f"trainer.{key}", getattr(trainer, key), 0)
    if trainer.batch_size % trainer.accumulate:
        raise UserError(
            f"trainer.accumulate={trainer.accumulate} does not divide trainer.batch_size={trainer.batch_size}: "
            "choose a divisor of it"
        )
    if (trainer.threads or 0) > MOST_THREADS:
        raise UserError(f"trainer.threads={trainer.threads} is too many: choose at most {MOST_THREADS}")
    _choice("trainer.precision", trainer.precision, PRECISIONS)
    kind, _, number = trainer.device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
        raise UserError(f"trainer.device={trainer.device} is unknown: choose auto, cpu, cuda or cuda:N")
    if trainer.strategy is not None:
        _choice("trainer.strategy", trainer.strategy, ("ddp",))
        if number:
            raise UserError(
                f"trainer.device={trainer.device} is one card and trainer.strategy={trainer.strategy} uses several: "
                "leave the number out (trainer.device=cuda), or the strategy"
            )
        check_shares(trainer, trainer.processes or 1)
    elif trainer.processes is not None:
        raise UserError(
            f"trainer.processes={trainer.processes} does nothing on one device: add trainer=ddp or leave it out"
        )


def check_shares(trainer: TrainerConfig, processes: int) -> None:
    """A Mistake where the batch of an update cannot be shared equally by so many ``processes``."""
    parts = trainer.accumulate * processes
    if trainer.batch_size % parts:
        raise UserError(
            f"trainer.batch_size={trainer.batch_size} cannot be shared by {processes} processes with "
            f"trainer.accumulate={trainer.accumulate}: choose a multiple of {parts}"
        )


def total_steps(config: Config) -> int:
    """Updates of the run: ``trainer.steps``, or as many as it takes to see ``trainer.tokens``."""
    trainer = config.trainer
    return trainer.steps or math.ceil(trainer.tokens / (trainer.batch_size * config.model.ctx_len))


def _check_length(config: Config) -> None:
    warmup, total = getattr(config.schedule, "warmup_steps", 0), total_steps(config)
    if warmup > total:
        raise UserError(f"schedule.warmup_steps={warmup} is longer than the run of {total} steps")


def _check_optimizer(config: Config) -> None:
    optimizer = config.optimizer
    _choice("optimizer.name", optimizer.name, ("adam", "adamw"))
    for key in ("betas", "betas_late"):
        betas = getattr(optimizer, key)
        if betas is not None and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
            raise UserError(f"optimizer.{key}={list(betas)} must be two numbers from 0 to below 1, such as [0.9,0.99]")
    if (optimizer.betas_late is None) != (optimizer.betas_late_step is None):
        raise UserError("optimizer.betas_late and optimizer.betas_late_step go together: give both or neither")
    _at_least("optimizer.betas_late_step", optimizer.betas_late_step, 0)
    _at_least("optimizer.eps", optimizer.eps, 0)
    _at_least("optimizer.weight_decay", optimizer.weight_decay, 0)


def _check_schedule(config: Config) -> None:
    schedule = config.schedule
    if schedule.name == "fitted":
        return
    _at_least("schedule.lr_init", schedule.lr_init, 0)
    _at_least("schedule.warmup_steps", schedule.warmup_steps, 0)
    positive = schedule.name == "exponential"
    if schedule.name == "wsd":
        _choice("schedule.decay_shape", schedule.decay_shape, schedules.SHAPES[1:])
        if not 0 <= schedule.decay_fraction <= 1:
            raise UserError(f"schedule.decay_fraction={schedule.decay_fraction} is not a fraction: choose from 0 to 1")
        positive = schedule.decay_shape == "exponential"
    if hasattr(schedule, "lr_final"):
        _at_least("schedule.lr_final", schedule.lr_final, 0)
        if positive and not (schedule.lr_init > 0 and schedule.lr_final > 0):
            raise UserError("schedule.lr_init and schedule.lr_final must be above 0 for an exponential decay")
    if schedule.name == "piecewise":
        _check_stages(schedule)


def _check_stages(schedule: Any) -> None:
    if not schedule.stages:
        raise UserError("schedule.stages is empty: give stages such as {until: 1.0, lr: 1e-4, shape: cosine}")
    before, rate = 0.0, schedule.lr_init
    for i, stage in enumerate(schedule.stages):
        key = f"schedule.stages[{i}]"
        _choice(f"{key}.shape", stage.shape, schedules.SHAPES)
        _at_least(f"{key}.lr", stage.lr, 0)
        if not before < stage.until <= 1:
            raise UserError(f"{key}.until={stage.until} must lie above {before} and at most at 1")
        if stage.shape == "exponential" and not (rate > 0 and stage.lr > 0):
            raise UserError(f"{key}.lr={stage.lr}: an exponential stage needs rates above 0 at both ends")
        before, rate = stage.until, stage.lr
    if before != 1:
        raise UserError(f"schedule.stages end at {before}: the last stage's until must be 1")


def schedule_parameters(schedule: Any) -> dict[str, Any]:
    """The keyword arguments of the schedule function; a fitted schedule's rates are read from its file."""
    parameters = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
    parameters.pop("name")
    if "stages" in parameters:
        parameters["stages"] = [(stage.until, stage.lr, stage.shape) for stage in schedule.stages]
    if "fit" in parameters:
        from rwkv_lab.training.fitted import read_proposal

        return {"rates": read_proposal(parameters["fit"]).rates}
    return parameters


def plain(config: Config) -> dict[str, Any]:
    """The checked configuration as plain nested data."""
    return dataclasses.asdict(config)
