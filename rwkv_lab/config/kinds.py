"""The kinds of component: the config every member shares and the methods the laboratory calls.

A member is a dataclass that inherits from its kind's config, under ``@register(kind, name)``, in one file. Its fields
are its settings; ``check`` and ``check_run`` hold rules across fields and groups; ``build`` makes the thing itself and
imports torch inside.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import MISSING

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.util.hashing import file_sha256

if TYPE_CHECKING:
    import torch

    from rwkv_lab.config.schema import Config
    from rwkv_lab.models.lm import LM


@dataclass
class Component(ABC):  # noqa: B024 (the kinds have the abstract methods)
    """A choice of one kind; ``name`` is the name it is registered under."""

    name: str = MISSING  # which member of the kind

    def check(self) -> None:  # noqa: B027 (many members have no rules across fields)
        """Raise UserError for fields that do not go together."""

    def check_run(self, run: "Config") -> None:  # noqa: B027
        """Raise UserError for fields that do not go together with other groups of the ``run``."""

    def file_hashes(self, group: str) -> dict[str, str]:
        """Return the sha256 of each file a field names, by dotted key: a run's hash counts it in place of the name."""
        named = {
            f"{group}.{field.name}": getattr(self, field.name)
            for field in fields(self)
            if field.metadata.get("file") and getattr(self, field.name)
        }
        return {key: file_sha256(path, key) for key, path in named.items()}


@dataclass
class ModelConfig(Component):
    """The settings every architecture offers. A default that differs between models stands in the model's own class."""

    n_layer: int = setting(4, low=1)  # blocks
    n_embd: int = setting(128, low=1)  # channels C of the residual stream
    ctx_len: int = setting(256, low=1)  # tokens of a training sequence
    token_shift: Literal["none", "half", "learned"] = "none"  # previous token mixed into each sublayer
    small_init_emb: bool | None = None  # true: tiny embedding and a norm after it; false: unit scale; unset: own recipe
    norm: Literal["pre", "post"] = "pre"  # pre: x += f(norm(x)); post: x = norm(x), x += f(x)
    head_qk_dim: int = setting(0, low=0)  # width of the head-QK term, which copies earlier tokens to the output; 0: off
    head_qk: Literal["sum", "max"] = "sum"  # amounts of a token that occurs several times
    l2_wrap: bool = False  # gradient that pulls the largest logit of each position towards 0
    init_from: str | None = setting(None, file=True)  # run or .safetensors file whose weights to start from

    def file_hashes(self, group: str) -> dict[str, str]:
        paths = {
            f"{group}.{field.name}": getattr(self, field.name) for field in fields(self) if "file" in field.metadata
        }
        return {
            key: file_sha256(Path(path) / "model.safetensors" if Path(path).is_dir() else path, key)
            for key, path in paths.items()
            if path
        }

    def check(self) -> None:
        if self.head_qk != "sum" and self.head_qk_dim == 0:
            raise UserError(
                f"model.head_qk={self.head_qk} does nothing without head-QK: set model.head_qk_dim, e.g. 256"
            )


@dataclass
class DataConfig(Component):
    """The text of a run, its division and the order of training."""


@dataclass
class TokenizerConfig(Component):
    """From text to token ids."""


@dataclass
class OptimizerConfig(Component):
    """The rule of an update."""

    @abstractmethod
    def build(self, model: "LM") -> "torch.optim.Optimizer":
        """Return the optimizer of the model's parameters; a group's ``lr_scale`` multiplies the schedule's rate."""

    @abstractmethod
    def set_step(self, optimizer: "torch.optim.Optimizer", step: int, lr: float) -> None:
        """Put the schedule's rate ``lr``, and whatever else varies, of update ``step`` into every group."""

    @abstractmethod
    def state_bytes(self, parameters: int) -> float:
        """Return the memory of the optimizer's state for so many fp32 parameters, in bytes."""


@dataclass
class ScheduleConfig(Component):
    """The learning rate of every update."""

    @abstractmethod
    def build(self, total: int) -> Callable[[int], float]:
        """Return the rate of each of ``total`` updates, given its index from 0."""


@dataclass
class ObjectiveConfig(Component):
    """The loss that is minimised."""


@dataclass
class TrackerConfig(Component):
    """Where a run reports its curves beside metrics.csv; nothing here is part of a run's identity."""


@dataclass
class StopConfig(Component):
    """When a sweep gives up a job; nothing here is part of a run's identity."""
