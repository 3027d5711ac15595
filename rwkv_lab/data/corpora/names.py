"""Names in a story: people are introduced by a rare name each, and must be called by it later."""

from dataclasses import dataclass

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.registry import register
from rwkv_lab.data.tasks import Made, TaskConfig

# TRADE and NAME stand for a person's. Every sentence has six words, so that sentences fill a row of any length.
INTRODUCTION = ["the", "TRADE", "is", "called", "NAME", "."]
CALL = ["we", "greet", "the", "TRADE", "NAME", "."]
FILLERS = [
    sentence.split()
    for sentence in (
        "it rained all day long .",
        "nobody came to the market .",
        "the road was very long .",
        "they ate bread and cheese .",
        "then the bells fell silent .",
    )
]
TRADES = ["baker", "farmer", "king", "miller", "nurse", "painter", "sailor", "smith", "tailor", "weaver"]
PLAIN = sorted({word for sentence in (INTRODUCTION, CALL, *FILLERS) for word in sentence} - {"TRADE", "NAME"})
WORDS = [*PLAIN, *TRADES]  # by id; names are the ids behind them
SENTENCE = len(CALL)
TRADE_SLOT, NAME_SLOT = CALL.index("TRADE"), CALL.index("NAME")


def _ids(sentence: list[str]) -> list[int]:
    return [WORDS.index(word) if word in WORDS else 0 for word in sentence]


@register("data", "names")
@dataclass
class NamesConfig(TaskConfig):
    """A story whose people are called by the rare names they were introduced by; accuracy of these, no bits per byte.

    "the king is called N . it rained all day long . we greet the king N ." Half of the sentences behind the
    introductions, and the last of all, call a person. The first token ids are words, the others names.
    """

    name: str = "names"
    people: int = setting(2, low=1, high=len(TRADES))  # people of a story
    names: int = setting(512, low=1)  # names, so that each is seen in one story of names/people

    @property
    def ids(self) -> int:
        return len(WORDS) + self.names

    @property
    def shortest(self) -> int:
        return SENTENCE * (self.people + 1) - 1

    @property
    def sentences(self) -> int:
        """Whole sentences of a sequence."""
        return (self.T + 1) // SENTENCE

    @property
    def draws(self) -> int:
        return len(TRADES) + self.people + 3 * (self.sentences - self.people)

    def word(self, token: int) -> str:
        return WORDS[token] if token < len(WORDS) else f"name{token - len(WORDS) + 1}"

    def check(self) -> None:
        super().check()
        if self.people > self.names:
            raise UserError(f"data.people={self.people} needs as many names: data.names={self.people} or more")

    def make(self, numbers: np.ndarray) -> Made:
        B, p, S = len(numbers), self.people, self.sentences
        trade, name, told = np.split(numbers, np.cumsum([len(TRADES), p]), axis=1)
        whether, who, filler = told.reshape(B, 3, S - p).swapaxes(0, 1)
        trades = len(PLAIN) + np.argsort(trade, axis=1)[:, :p]  # [B,p]
        names = len(WORDS) + (name % np.uint64(self.names)).astype(np.int64)
        calls = whether % np.uint64(2) == 0  # [B,S-p]
        calls[:, -1] = True
        person = (who % np.uint64(p)).astype(np.int64)
        fillers = np.array([_ids(sentence) for sentence in FILLERS])
        first = np.broadcast_to(np.array(_ids(INTRODUCTION)), (B, p, SENTENCE)).copy()
        first[:, :, INTRODUCTION.index("TRADE")], first[:, :, INTRODUCTION.index("NAME")] = trades, names
        called = np.broadcast_to(np.array(_ids(CALL)), (B, S - p, SENTENCE)).copy()
        called[:, :, TRADE_SLOT] = np.take_along_axis(trades, person, axis=1)
        called[:, :, NAME_SLOT] = np.take_along_axis(names, person, axis=1)
        rest = fillers[(filler % np.uint64(len(FILLERS))).astype(np.int64)]
        story = np.concatenate((first, np.where(calls[:, :, None], called, rest)), axis=1).reshape(B, -1)
        rows, weights = np.zeros((B, self.T + 1), np.int64), np.zeros((B, self.T), np.float32)
        rows[:, -story.shape[1] :] = story
        answers = story.shape[1] - SENTENCE * np.arange(S - p, 0, -1) + NAME_SLOT - 1  # places in weights, from the end
        answers += self.T + 1 - story.shape[1]
        weights[:, answers] = calls / calls.sum(1, keepdims=True)
        return Made(rows, weights)
