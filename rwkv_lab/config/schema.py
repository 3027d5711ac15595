"""The configuration of a run: one dataclass a group; the groups chosen by name are components (``kinds.py``)."""

from dataclasses import dataclass
from typing import Literal

from omegaconf import MISSING

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import Count, setting
from rwkv_lab.config.kinds import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    StopConfig,
    TokenizerConfig,
    TrackerConfig,
)

MOST_THREADS = 1024


@dataclass
class TrainerConfig:
    """Length, batch, devices and intervals of the training loop."""

    tokens: Count = setting("1M", count=True)  # length of the run in training tokens
    steps: Count = setting(None, count=True)  # length in updates; wins over tokens
    batch_size: int = setting(8, low=1)  # sequences per update, all devices and accumulation together
    accumulate: int = setting(1, low=1)  # micro-batches per update
    clip: float = setting(1.0, low=0)  # largest gradient norm; 0 does not clip
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"  # bf16, fp16: autocast, fp32 master weights
    compile: Literal["auto", "true", "false"] = setting(
        "auto", hash_default=False
    )  # blocks by torch.compile; auto: long runs
    activation_checkpointing: bool = setting(False, identity=False)  # compute blocks again in backward; less memory
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int | None = setting(None, low=1, high=MOST_THREADS)  # torch CPU threads; unset: all cores
    overfit: bool = False  # train on the first batch again and again
    eval_tokens: Count = setting(32768, count=True)  # tokens of the fixed held-out part measured during training
    final_tokens: Count = setting(None, count=True)  # held-out tokens measured at the end; unset: all
    strategy: Literal["ddp", "fsdp"] | None = None  # unset: one device; ddp: a copy on each; fsdp: a share on each
    processes: int | None = setting(None, low=1)  # of ddp and fsdp; unset: one a GPU, or a CPU core
    cpu_offload: bool = False  # fsdp: weights and optimizer state in the CPU's memory
    gather: Literal["fp32", "bf16"] | None = (
        None  # fsdp: type weights are gathered in; unset: fp32; bf16: half the traffic
    )
    timeout: float = setting(600.0, low=1, identity=False)  # seconds processes wait for one before they give up
    deterministic: bool = False  # bit-equal numbers on a GPU where torch can, at some cost
    log_every: int = setting(10, low=1, identity=False)  # updates between rows of metrics.csv
    eval_every: int = setting(100, low=0, identity=False)  # updates between evaluations; 0: at the end only
    checkpoint_every: int = setting(200, low=0, identity=False)  # updates between checkpoints; 0: at the end only
    keep_every: int = setting(0, low=0, identity=False)  # updates between checkpoints kept for good; 0: newest two only
    profile: int = setting(0, low=0, identity=False)  # updates traced by torch's profiler after the first 5; 0: none
    sample_length: int = setting(300, low=0, identity=False)  # tokens of sample.txt; 0 writes none

    def check(self) -> None:
        """Raise UserError for values that do not go together; a length in updates unsets ``tokens``."""
        if self.steps is not None:
            # A run stated in updates is the same run whatever tokens holds.
            self.tokens = None
        kind, _, number = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (
            number and not (kind == "cuda" and number.isascii() and number.isdigit())
        ):
            raise UserError(f"trainer.device={self.device} is unknown: choose auto, cpu, cuda or cuda:N")
        if number and self.strategy is not None:
            raise UserError(
                f"trainer.device={self.device} is one card and trainer.strategy={self.strategy} uses several: "
                "leave the number out (trainer.device=cuda), or the strategy"
            )
        if self.processes is not None and self.strategy is None:
            raise UserError(
                f"trainer.processes={self.processes} does nothing on one device: add trainer=ddp or trainer=fsdp, or "
                "leave it out"
            )
        for key in ("cpu_offload", "gather"):
            if getattr(self, key) and self.strategy != "fsdp":
                raise UserError(f"trainer.{key} is of trainer=fsdp: add that, or leave it out")

    @property
    def outside_identity(self) -> tuple[str, ...]:
        """Fields that cannot change this run's result: a run in shares goes on with any number of processes."""
        return ("processes",) if self.strategy == "fsdp" else ()


@dataclass
class OpsConfig:
    """Which implementation computes the WKV scan."""

    backend: Literal["auto", "native", "reference"] = "auto"  # native: csrc/; reference: plain torch
    cache_dir: str | None = setting(None, identity=False)  # built kernels; unset: rwkv_lab/ops in the user's cache


@dataclass
class BranchConfig:
    """The moment of another run from which this one goes on with its own schedule."""

    parent: str | None = setting(None, identity=False)  # that run; unset: this configuration with a constant rate
    step: int | None = setting(None, low=1)  # updates taken over from it; unset: no branch


@dataclass
class Config:
    """A checked run. The fields that are dataclasses are Hydra groups."""

    study: str = setting("default", identity=False)  # folder of the run under runs_dir
    runs_dir: str | None = setting(None, identity=False)  # where runs are; unset: runs/ of the checkout
    seed: int = setting(1, low=0, high=2**63 - 1)  # seeds initialisation, data order and sampling
    rerun: bool = setting(False, identity=False)  # start afresh although the run exists
    dry_run: bool = setting(False, identity=False)  # print what would run; train nothing
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    objective: ObjectiveConfig = setting(MISSING, hash_default=False)
    trainer: TrainerConfig = MISSING
    tracker: TrackerConfig = MISSING
    ops: OpsConfig = MISSING
    branch: BranchConfig = setting(factory=BranchConfig, hash_default=False)  # start from another run
    stop: StopConfig | None = setting(None, identity=False)  # when a sweep gives up a job; unset: never

    def check(self) -> None:
        """Raise UserError for a study that cannot be a folder."""
        if not self.study or set(self.study) & set("/\\\0") or self.study.startswith("."):
            raise UserError(f"study={self.study} is not a folder name: use letters, digits, '-' and '_'")
        if self.branch.parent is not None and self.branch.step is None:
            raise UserError("branch.parent needs branch.step, the number of updates to take over from it, e.g. 8000")


PLAIN_GROUPS: dict[str, type] = {"trainer": TrainerConfig, "ops": OpsConfig}  # groups whose options share one schema
COMPONENT_GROUPS = ("model", "data", "tokenizer", "optimizer", "schedule", "objective", "tracker")
OPTIONAL_GROUPS = ("stop",)  # components that may be unset
GROUPS = (*COMPONENT_GROUPS, *PLAIN_GROUPS)  # groups every run has
ALL_GROUPS = (*GROUPS, *OPTIONAL_GROUPS)
