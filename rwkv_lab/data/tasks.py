"""Tasks: sequences that are made when they are read, with a weight for the loss of every token.

Sequence n is a pure function of the seed and n. Whether a sequence is held out is decided by its content, so that none
of those a model is tested on can be among those it is trained on, whatever the seeds.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import DataConfig, Holding, TokenizerConfig
from rwkv_lab.data.dataset import Corpus
from rwkv_lab.data.sampling import draws, folded
from rwkv_lab.data.sources import Segment, Sources
from rwkv_lab.data.token_cache import Split
from rwkv_lab.data.tokenizers.base import Tokenizer
from rwkv_lab.util.hashing import text_sha256

if TYPE_CHECKING:
    from rwkv_lab.config.schema import Config

PURPOSE = 0x7461736B00  # stream of random numbers; one more for each attempt at a sequence
ATTEMPTS = 256
HELD_OUT_SEED = 0  # every run is tested on the same sequences
ONE_IN = 8  # sequences that are held out
SHOWN = 16  # sequences to look at


class Made(NamedTuple):
    """Some sequences of a task."""

    rows: np.ndarray  # [B,T+1] token ids
    weights: np.ndarray  # [B,T] of the losses of rows[:, 1:]; every row's have the same sum


@dataclass
class TaskConfig(DataConfig):
    """Sequences made by a rule; tokenizer=ids."""

    length: int | None = setting(None, low=2)  # tokens T a model reads of a sequence; unset: model.ctx_len
    sequences: int = setting(1 << 20, low=1)  # training sequences; after the last comes the first again
    held_out: int = setting(512, low=1)  # held-out sequences, none of them a training sequence

    holds: ClassVar[Holding] = "token ids"
    weighted: ClassVar[bool] = True

    @property
    @abstractmethod
    def ids(self) -> int:
        """Number of token ids."""

    @property
    @abstractmethod
    def shortest(self) -> int:
        """Fewest tokens T that a model must read."""

    @property
    @abstractmethod
    def draws(self) -> int:
        """Random numbers a sequence is made of."""

    @abstractmethod
    def make(self, numbers: np.ndarray) -> Made:
        """Return one sequence for each row of ``numbers``, uint64 [B,draws]."""

    def word(self, token: int) -> str:
        """Return how a token id is shown to a reader."""
        return str(token)

    @property
    def T(self) -> int:
        """Tokens a model reads of a sequence. Raises UserError if they are too few or not given."""
        if self.length is None:
            raise UserError("data.length is missing: give the tokens of a sequence, e.g. 64")
        if self.length < self.shortest:
            raise UserError(
                f"data={self.name} needs sequences of at least {self.shortest} tokens with these settings "
                f"(got {self.length}): set model.ctx_len={self.shortest} or make the task smaller"
            )
        return self.length

    def check(self) -> None:
        if self.order != "random":
            raise UserError(f"data.order={self.order} does nothing for data={self.name}: leave it out")

    def check_run(self, run: "Config") -> None:
        super().check_run(run)
        if not run.objective.weighted:
            raise UserError(
                f"objective={run.objective.name} cannot count the answers of data={self.name} alone: use objective=lm"
            )
        if self.length not in (None, run.model.ctx_len):
            raise UserError(
                f"data.length={self.length} and model.ctx_len={run.model.ctx_len} differ: give model.ctx_len only"
            )
        self.length = run.model.ctx_len
        _ = self.T

    def sources(self, cache: Path) -> Sources:
        """Return the largest token id as a text of one token, which is all that a tokenizer is made of."""
        largest = Segment(Path(self.name), 0, 1, "data", "")
        return Sources({"train": [largest]}, ids=lambda segment: iter([np.array([self.ids - 1])]))

    def made(self, tokenizer: TokenizerConfig, stored: Tokenizer | None) -> Corpus:
        built = stored or tokenizer.build(self.sources(Path()))
        if built.vocab_size < self.ids:
            raise UserError(
                f"tokenizer={tokenizer.name} has {built.vocab_size} tokens and data={self.name} {self.ids}: "
                "use tokenizer=ids"
            )
        train, val = (TaskSplit(self.first(held), 0, task=self, held=held) for held in (False, True))
        content = train.tokens.astype("<u4").tobytes() + val.tokens.astype("<u4").tobytes()
        note = "val_bpb is not measured: the sequences have no text; val_loss and val_accuracy count answers only"
        return Corpus(built, train, val, None, {f"first {SHOWN} sequences": text_sha256(content)}, [note])

    def first(self, held: bool) -> np.ndarray:
        """Return the first sequences, one after the other [N]."""
        return self.numbered(np.arange(min(SHOWN, self.held_out if held else self.sequences)), 0, held).rows.ravel()

    def numbered(self, numbers: np.ndarray, seed: int, held: bool) -> Made:
        """Return the sequences of these ``numbers`` [B], all ``held`` out or none.

        A sequence of the other kind is drawn anew. Raises UserError if hardly any is of the right kind.
        """
        B, T = len(numbers), self.T
        made = Made(np.empty((B, T + 1), np.int64), np.empty((B, T), np.float32))
        open_ = np.arange(B)
        for attempt in range(ATTEMPTS):
            rows, weights = self.make(draws(seed, PURPOSE + attempt, numbers[open_], self.draws))
            fits = (folded(rows) % np.uint64(ONE_IN) == 0) == held
            made.rows[open_[fits]], made.weights[open_[fits]] = rows[fits], weights[fits]
            open_ = open_[~fits]
            if not len(open_):
                return made
        raise UserError(f"data={self.name} has too few different sequences with these settings: make the task larger")


@dataclass(frozen=True, eq=False)
class TaskSplit(Split):
    """The training or the held-out sequences of a task; ``tokens`` are the first few, to look at."""

    task: TaskConfig = field(kw_only=True)
    held: bool = field(kw_only=True)

    weighted: ClassVar[bool] = True

    @property
    def count(self) -> int:
        """Number of sequences."""
        return self.task.held_out if self.held else self.task.sequences

    def __len__(self) -> int:
        return self.count * (self.task.T + 1)

    def sequences(self, order: str, ctx_len: int, seed: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the sequences number ``first`` to ``first + count - 1`` [count,T+1] and their weights [count,T].

        Those held out are the same for every ``seed``.
        """
        numbers = (first % self.count + np.arange(count)) % self.count
        return self.task.numbered(numbers, HELD_OUT_SEED if self.held else seed, self.held)
