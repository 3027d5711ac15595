"""The kinds of component: the config every member shares and the methods the laboratory calls.

A member is a dataclass that inherits from its kind's config, under ``@register(kind, name)``, in one file. Its fields
are its settings; ``check`` and ``check_run`` hold rules across fields and groups; ``build`` makes the thing itself and
imports torch inside.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from omegaconf import MISSING

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.model_fields import RoleShares, Shift, ShiftKind, check_shift, pixel_signs, shift_of
from rwkv_lab.config.registry import members
from rwkv_lab.util.hashing import file_sha256

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from rwkv_lab.config.schema import Config
    from rwkv_lab.data.dataset import Corpus
    from rwkv_lab.data.sources import Sources
    from rwkv_lab.data.token_cache import Split
    from rwkv_lab.data.tokenizers.base import Tokenizer
    from rwkv_lab.models.lm import LM
    from rwkv_lab.models.rwkv_lm_format import Original
    from rwkv_lab.runs import Run
    from rwkv_lab.sweeps.stopping.curves import JobCurve, Verdict
    from rwkv_lab.tracking.tracker import Tracker
    from rwkv_lab.training.evaluate import Evaluation

Holding = Literal["text", "token ids", "images"]  # what a corpus is made of


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

    recurrent: ClassVar[bool] = False  # every sublayer carries the whole past in a state of constant size
    recipe_emb_norm: ClassVar[bool] = False  # the architecture's own recipe has a norm after the embedding
    reads_both_ways: ClassVar[bool] = False  # ``build`` follows the field ``bidirectional``

    n_layer: int = setting(4, low=1)  # blocks
    n_embd: int = setting(128, low=1)  # channels C of the residual stream
    ctx_len: int = setting(256, low=1)  # tokens of a training sequence
    token_shift: ShiftKind = "none"  # previous token mixed into each sublayer
    shift_share: float | None = setting(None, low=0, high=1)  # share of channels from the previous token; unset: 0.5
    shift_roles: RoleShares | None = None  # roles with a share of their own, e.g. {q: 0.3, k: 0.5, v: 0.7}
    shift_last: float | None = setting(None, low=0, high=1)  # share in the last layer, to which ramp goes; unset: 0.1
    small_init_emb: bool | None = None  # true: emb_init=small and emb_norm; false: unit and no norm; unset: own recipe
    emb_init: Literal["unit", "recipe", "small"] | None = None  # embedding of scale 1, own recipe, U(-1e-4, 1e-4)
    emb_norm: bool | None = None  # norm after the embedding; unset: own recipe
    norm: Literal["pre", "post"] = "pre"  # pre: x += f(norm(x)); post: x = norm(x), x += f(x)
    head_qk_dim: int = setting(0, low=0)  # width of the head-QK term, which copies earlier tokens to the output; 0: off
    head_qk: Literal["sum", "max"] = "sum"  # amounts of a token that occurs several times
    l2_wrap: bool = False  # gradient that pulls the largest logit of each position towards 0
    init_from: str | None = setting(None, file=True)  # run (path, STUDY/NAME, id), .pth, .safetensors or HF folder
    init_vocab: Literal["match"] | None = None  # match: init_from's rows of emb and head go to the same tokens
    bidirectional: bool = False  # every position sees all others; objective=mlm sets it
    positions_2d: bool = False  # x and y of each pixel of data=images added to its first channels
    image_size: int | None = setting(None, low=1)  # side of those pictures; data=images sets it
    image_levels: int | None = setting(None, low=2)  # levels of their colours; data=images sets it

    @abstractmethod
    def build(self, vocab_size: int, backend: str) -> "LM":
        """Return the model, its parameters not yet filled; ``backend`` computes the WKV scan, if it has one."""

    @abstractmethod
    def initialise(self, model: "LM", generator: "torch.Generator") -> None:
        """Fill every parameter of ``model``, drawing random numbers from ``generator`` alone."""

    def mixing_flops(self) -> float:
        """Return the forward FLOPs per token between positions, beside linear layers and head-QK."""
        return 0.0

    def original(self) -> "Original | None":
        """Return how the original implementation names this model's parameters; None for a model it lacks."""
        return None

    @property
    def embedding_start(self) -> Literal["unit", "recipe", "small"]:
        """Initial values of the embedding, after ``small_init_emb`` and ``emb_init``."""
        if self.small_init_emb is not None:
            return "small" if self.small_init_emb else "unit"
        return self.emb_init or "recipe"

    @property
    def embedding_norm(self) -> bool:
        """Return whether a norm follows the embedding; in a post-norm model the first block's own."""
        for chosen in (self.small_init_emb, self.emb_norm):
            if chosen is not None:
                return chosen
        return self.recipe_emb_norm

    @property
    def start_files(self) -> dict[str, str]:
        """The fields that name weights to start from, with their values."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if "file" in field.metadata}
        return {name: text for name, text in named.items() if text}

    def file_hashes(self, group: str) -> dict[str, str]:
        from rwkv_lab.models.weights import weights_file

        keys = {f"{group}.{name}": text for name, text in self.start_files.items()}
        return {key: file_sha256(weights_file(text, key), key) for key, text in keys.items()}

    def shift(self, layer: int) -> Shift:
        """Return the token shift of block ``layer``, after ``token_shift`` and the fields beside it."""
        return shift_of(self, layer)

    def pixel_signs(self) -> tuple[int, int, tuple[int, int]]:
        """Return side, number of pixel tokens and the ids of the signs before a picture, for positions_2d."""
        return pixel_signs(self)

    def check(self) -> None:
        check_shift(self)
        if self.head_qk != "sum" and self.head_qk_dim == 0:
            raise UserError(
                f"model.head_qk={self.head_qk} does nothing without head-QK: set model.head_qk_dim, e.g. 256"
            )
        if self.bidirectional and not self.reads_both_ways:
            able = [name for name, member in members("model").items() if member.reads_both_ways]
            raise UserError(
                f"model={self.name} reads from left to right only, and objective=mlm needs both directions: choose "
                f"one of {', '.join(able)}"
            )
        if self.bidirectional and self.head_qk_dim:
            raise UserError(
                f"model.head_qk_dim={self.head_qk_dim} copies earlier tokens and objective=mlm reads in both "
                "directions: set model.head_qk_dim=0"
            )
        if self.init_vocab and not self.init_from:
            raise UserError(f"model.init_vocab={self.init_vocab} does nothing without model.init_from=RUN")
        if self.small_init_emb is not None:
            shown = f"model.small_init_emb={str(self.small_init_emb).lower()}"
            if self.emb_init not in (None, self.embedding_start):
                raise UserError(
                    f"{shown} and model.emb_init={self.emb_init} contradict each other: the former means "
                    f"model.emb_init={self.embedding_start}, give one of them"
                )
            if self.emb_norm not in (None, self.small_init_emb):
                raise UserError(
                    f"{shown} and model.emb_norm={str(self.emb_norm).lower()} contradict each other: give emb_init and "
                    "emb_norm without small_init_emb"
                )
        if self.emb_norm is False and self.norm == "post":
            raise UserError("model.emb_norm=false needs model.norm=pre: a post-norm block begins with that norm")

    def check_run(self, run: "Config") -> None:
        """Resolve names of runs, which mean those below ``runs_dir``, to their folders."""
        from rwkv_lab.models.weights import weights_file

        if self.positions_2d and run.data.holds != "images":
            raise UserError(
                f"model.positions_2d=true needs pictures and data={run.data.name} has none: use data=images"
            )
        for name, text in self.start_files.items():
            file = weights_file(text, f"model.{name}", run.runs_dir)
            if not Path(text).expanduser().exists():
                setattr(self, name, str(file.parent))


class Drawing(NamedTuple):
    """Some pictures to be drawn after training."""

    prompts: "np.ndarray"  # token ids [B,P] to go on from
    length: int  # tokens to draw
    choices: int  # the tokens drawn are below this id


@dataclass
class DataConfig(Component):
    """The text of a run, its division and the order of training."""

    order: Literal["random", "cube", "sequential"] = "random"  # random offsets, a permutation of chunks, or in order
    cache_dir: str | None = setting(None, identity=False)  # of downloads and tokens; unset: the user's cache folder

    holds: ClassVar[Holding] = "text"  # or token ids
    suffixes: ClassVar[tuple[str, ...]] = ()  # of files a user may have meant by data=FILE
    weighted: ClassVar[bool] = False  # sequences come with a weight for the loss of each token
    usage: ClassVar[str | None] = None  # what to try with a trained run, in place of the objective's

    @abstractmethod
    def sources(self, cache: Path) -> "Sources":
        """Return where the corpus is, downloaded into ``cache`` if need be; UserError names the key and the file."""

    def made(self, tokenizer: "TokenizerConfig", stored: "Tokenizer | None") -> "Corpus | None":
        """Return a corpus that is made as it is read, by the tokenizer ``stored`` if there is one; None for files."""
        return None

    def drawings(self, corpus: "Corpus") -> "list[Drawing]":
        """Return the pictures that a finished run draws; empty for a corpus of text, which it continues."""
        return []

    def picture(self, corpus: "Corpus", drawn: "list[np.ndarray]") -> bytes:
        """Return a PNG of what was ``drawn`` for each of ``drawings``, token ids [B,length]."""
        raise NotImplementedError

    def check_run(self, run: "Config") -> None:
        run.tokenizer.check_data(self)


@dataclass
class TokenizerConfig(Component):
    """From text to token ids."""

    reads: ClassVar[tuple[Holding, ...]] = ("text",)  # what a corpus may hold

    @abstractmethod
    def build(self, sources: "Sources") -> "Tokenizer":
        """Return the tokenizer for a corpus; UserError names the key and the file."""

    @classmethod
    @abstractmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Tokenizer":
        """Return the tokenizer whose ``to_json`` gave ``stored``; KeyError, TypeError or ValueError if none did."""

    def notes(self, sources: "Sources") -> list[str]:
        """Return what a reader of the result should know of the tokens, one sentence each."""
        return []

    def check_data(self, data: DataConfig) -> None:
        """Raise UserError for a corpus that this tokenizer cannot read."""
        if data.holds not in self.reads:
            fitting = [name for name, member in members("tokenizer").items() if data.holds in member.reads]
            raise UserError(
                f"tokenizer={self.name} cannot read data={data.name}, which has {data.holds}: "
                f"choose one of {', '.join(fitting)}"
            )


@dataclass
class OptimizerConfig(Component):
    """The rule of an update."""

    @abstractmethod
    def build(self, parameters: "Mapping[str, nn.Parameter]") -> "list[torch.optim.Optimizer]":
        """Return the optimizers that share out the named parameters; one step of each makes an update."""

    @abstractmethod
    def state_bytes(self, parameters: "Mapping[str, nn.Parameter]") -> int:
        """Return the memory of the optimizers' state for these parameters, in bytes."""

    def set_lr(self, optimizers: "Sequence[torch.optim.Optimizer]", step: int, lr: float) -> None:
        """Put the schedule's rate ``lr`` of update ``step`` into every group, times the group's ``lr_scale`` (1)."""
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)


@dataclass
class Prediction:
    """The loss that a fitted law predicts for the end of a run."""

    final_loss: float  # nats per token, of ``column``
    interval: tuple[float, float]  # around final_loss
    level: float  # probability the interval claims
    column: str  # the measured loss that was fitted: val_loss or train_loss
    law: str  # name of the law
    kind: str  # of the proposed schedule
    fit: str  # the file it was read from
    best_run: str = ""  # name of the run fitted that ended lowest; empty in files that lack it
    best_loss: float | None = None  # its final loss, of ``column``
    best_steps: int = 0  # its length in updates


@dataclass
class ScheduleConfig(Component):
    """The learning rate of every update."""

    @abstractmethod
    def build(self, total: int) -> Callable[[int], float]:
        """Return the rate of each of ``total`` updates, given its index from 0."""

    def prediction(self) -> Prediction | None:
        """Return the loss predicted for a run with this schedule; None if the schedule was not fitted."""
        return None


@dataclass
class ObjectiveConfig(Component):
    """The loss that is minimised and how it is measured on held-out text."""

    bidirectional: ClassVar[bool] = False  # the model reads in both directions, and so cannot continue a text
    weighted: ClassVar[bool] = False  # ``batch`` and ``loss`` take the weights of data=recall and other tasks
    extra_tokens: ClassVar[int] = 0  # ids the model has behind those of the tokenizer
    usage: ClassVar[str] = 'python -m rwkv_lab.generate {run} "prompt"'  # what to try with a trained run

    def check_run(self, run: "Config") -> None:
        if run.model.bidirectional and not self.bidirectional:
            raise UserError(
                f"model.bidirectional=true shows objective={self.name} the tokens it predicts: leave it out, or use "
                "objective=mlm"
            )

    def notes(self) -> list[str]:
        """Return what a reader of the result should know of its numbers, one sentence each."""
        return []

    def measures(self, split: "Split") -> tuple[str, ...]:
        """Return the optional columns of metrics.csv that ``evaluate`` fills for ``split``."""
        return ()

    @abstractmethod
    def batch(
        self, rows: "np.ndarray", first: int, seed: int, weights: "np.ndarray | None" = None
    ) -> "tuple[np.ndarray, ...]":
        """Return the arrays ``loss`` takes, made of token windows ``rows`` [B,T+1].

        Behind ``weights`` come the targets [B,T,J] and the places of the first tokens [B] of data=images.

        The rows are the run's sequences number ``first`` to ``first + B - 1``; random numbers depend on these and
        ``seed`` only, so that a resumed run draws the same. ``weights`` [B,T] are those of the losses of rows[:, 1:];
        None: all count alike.
        """

    @abstractmethod
    def loss(self, model: "LM", *batch: "torch.Tensor") -> "torch.Tensor":
        """Return the mean training loss of a batch, a scalar in nats per predicted token."""

    @abstractmethod
    def evaluate(
        self, model: "LM", split: "Split", ctx_len: int, batch_size: int, device: str, tokens: int
    ) -> "Evaluation":
        """Return the loss on the first ``tokens`` held-out tokens: quick, and the same text every time."""

    @abstractmethod
    def evaluate_final(
        self, model: "LM", split: "Split", ctx_len: int, batch_size: int, device: str, tokens: int | None
    ) -> "Evaluation":
        """Return the loss on the whole held-out text, or on its first ``tokens``, as a run reports it at its end."""


@dataclass
class TrackerConfig(Component):
    """Where a run reports its curves beside metrics.csv; nothing here is part of a run's identity."""

    @property
    def active(self) -> bool:
        """Return whether there is anything to open."""
        return True

    @property
    def remote(self) -> bool:
        """Return whether rows go to a server; what it has received is then noted in uploaded.json."""
        return False

    @abstractmethod
    def open(self, run: "Run", after: int) -> "Tracker":
        """Return the tracker of ``run`` for rows behind update ``after``; what it raises is a warning of the run."""

    def offline(self) -> "TrackerConfig | None":
        """Return the settings to go on with if ``open`` fails; None to go on without a tracker."""
        return None

    def uploading(self, folder: Path) -> "TrackerConfig | None":
        """Return the settings that send a finished run to its server, with files in ``folder``; None without one."""
        return None


@dataclass
class StopConfig(Component):
    """When a sweep gives up a job; nothing here is part of a run's identity."""

    after: float = setting(0.2, low=0, below=1)  # fraction of its length before which no job is stopped

    @abstractmethod
    def verdict(self, job: "JobCurve", others: "Sequence[JobCurve]") -> "Verdict":
        """Return whether ``job`` goes on, given the comparable ``others`` of its study."""
