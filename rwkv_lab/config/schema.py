"""The schema of every configuration group: types, defaults and meaning.

The dataclasses of models and data live beside what they configure (``models/config.py``, ``data/config.py``); this
module registers all of them with Hydra. A field marked ``identity=False`` cannot change a run's result and is left out
of its identity. A new field's default must mean "as before", because None is left out too, and False where the default
is not None. Imports no torch.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from rwkv_lab.data.config import DataConfig, TokenizerConfig
from rwkv_lab.models.registry import MODELS


def _aside(default: Any) -> Any:
    """A field that is not part of a run's identity."""
    return field(default=default, metadata={"identity": False})


@dataclass
class OptimizerConfig:
    name: str = "adam"  # adam | adamw (decoupled decay); both decay linear weights only
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])  # running-average coefficients of Adam
    betas_late: list[float] | None = None  # the coefficients from betas_late_step on
    betas_late_step: int | None = None  # first update that uses betas_late
    eps: float = 1e-8  # added to the denominator
    weight_decay: float = 0.0  # 0.01 in the original's MHA recipes, 0 for RWKV


@dataclass
class ScheduleConfig:
    name: str = MISSING  # constant | linear | cosine | exponential | wsd | piecewise | fitted
    lr_init: float = 2e-3  # rate after the warm-up
    warmup_steps: int = 0  # updates of linear rise before it


@dataclass
class DecaySchedule(ScheduleConfig):
    lr_final: float = 1e-4  # rate of the last update


@dataclass
class WSDSchedule(DecaySchedule):
    decay_fraction: float = 0.2  # share of the run that decays
    decay_shape: str = "linear"  # linear | cosine | exponential


@dataclass
class Stage:
    until: float = MISSING  # fraction of the run at which the stage ends
    lr: float = MISSING  # the rate it ends with (constant: holds)
    shape: str = "linear"  # constant | linear | cosine | exponential


@dataclass
class PiecewiseSchedule(ScheduleConfig):
    stages: list[Stage] = field(default_factory=list)  # in order; the last ends at 1.0


@dataclass
class FittedSchedule:
    name: str = "fitted"
    fit: str = MISSING  # the fit.json of `python -m analysis fit` or `optimal`; counts by its content


@dataclass
class TrainerConfig:
    tokens: Any = "1M"  # length of the run in training tokens: 1000000, 1e6, 1M, 2.5B
    steps: Any = None  # length in updates, written like tokens; wins over it
    batch_size: int = 8  # sequences per update, all devices and accumulation together
    accumulate: int = 1  # micro-batches per update
    clip: float = 1.0  # largest gradient norm; 0 does not clip
    precision: str = "auto"  # auto | fp32 | tf32 | bf16 (autocast over fp32 master weights)
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: int | None = None  # torch CPU threads; unset takes what the machine has
    overfit: bool = False  # train on the first batch again and again
    eval_tokens: Any = 32768  # tokens of the fixed held-out part measured during training
    final_tokens: Any = None  # held-out tokens measured at the end; unset: all of them
    strategy: str | None = None  # unset: one device; ddp: several, data parallel
    processes: int | None = None  # how many ddp starts; unset: one a GPU, or a CPU core
    timeout: float = _aside(600.0)  # seconds ddp's processes wait for one of them before they give up
    deterministic: bool = False  # bit-equal numbers on a GPU where torch can, at some cost
    log_every: int = _aside(10)  # updates between rows of metrics.csv
    eval_every: int = _aside(100)  # updates between evaluations; 0 evaluates at the end only
    checkpoint_every: int = _aside(200)  # updates between checkpoints; 0 saves at the end only
    sample_length: int = _aside(300)  # tokens of sample.txt; 0 writes none


@dataclass
class TrackerConfig:
    name: str = _aside("wandb")  # wandb | none
    mode: str = _aside("offline")  # offline | online | disabled
    project: str = _aside("rwkv_lab")  # the tracker's project
    entity: str | None = _aside(None)  # the tracker's team or user; unset: your default
    tags: list[str] = field(default_factory=list, metadata={"identity": False})  # labels of the run
    folder: str | None = _aside(None)  # where offline files go; unset: wandb/ inside the run directory


@dataclass
class OpsConfig:
    backend: str = "auto"  # auto | native (csrc/) | reference (plain torch)
    cache_dir: str | None = _aside(None)  # where built kernels are kept; unset: rwkv_lab/ops in the user's cache folder


@dataclass
class Config:
    study: str = _aside("default")  # folder of the run under runs/
    seed: int = 1  # seeds initialisation, data order and sampling
    rerun: bool = _aside(False)  # start afresh although the run exists
    dry_run: bool = _aside(False)  # say what would run, train nothing
    model: Any = MISSING
    data: Any = MISSING
    tokenizer: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    trainer: Any = MISSING
    tracker: Any = MISSING
    ops: Any = MISSING


SCHEDULE_SCHEMAS: dict[str, type] = {
    "constant": ScheduleConfig,
    "linear": DecaySchedule,
    "cosine": DecaySchedule,
    "exponential": DecaySchedule,
    "wsd": WSDSchedule,
    "piecewise": PiecewiseSchedule,
    "fitted": FittedSchedule,
}

GROUP_SCHEMAS: dict[str, type] = {
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
    "tracker": TrackerConfig,
    "ops": OpsConfig,
}

GROUPS = ("model", "data", "tokenizer", "optimizer", "schedule", "trainer", "tracker", "ops")


def schema_of(group: str, name: str) -> type:
    """The dataclass of a group's configuration whose ``name`` field is ``name``; KeyError where there is none."""
    if group == "model":
        return MODELS[name].config
    if group == "schedule":
        return SCHEDULE_SCHEMAS[name]
    return GROUP_SCHEMAS[group]


def without_its_group(key: str) -> str:
    """`` (did you mean 'trainer.steps'?)`` for ``steps`` and ``schedule.lr_init`` for ``lr``, or an empty string."""
    named = [("model", entry.config) for entry in MODELS.values()]
    named += [("schedule", schema) for schema in SCHEDULE_SCHEMAS.values()]
    for group, schema in (*GROUP_SCHEMAS.items(), *named):
        for each in fields(schema):
            if each.name == key or each.name.startswith(f"{key}_"):
                return f" (did you mean '{group}.{each.name}'?)"
    return ""


def register() -> None:
    """Puts every schema into Hydra's config store: ``schema/config``, ``schema/<group>``, ``schema/<group>/<name>``."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config)
    for group, schema in GROUP_SCHEMAS.items():
        store.store(group="schema", name=group, node=schema)
    for name, entry in MODELS.items():
        store.store(group="schema/model", name=name, node=entry.config)
    for name, schema in SCHEDULE_SCHEMAS.items():
        store.store(group="schema/schedule", name=name, node=schema)
