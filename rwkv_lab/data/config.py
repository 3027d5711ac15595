"""Schema of the groups ``data`` and ``tokenizer``, and the checks that need no file."""

from dataclasses import dataclass
from typing import Literal

from rwkv_lab.config import kinds
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.registry import register
from rwkv_lab.config.schema import Config

DATA_NAMES = ("builtin", "text", "npy", "enwik8", "simplebooks_92", "simplebooks_2", "kjv")
TOKENIZER_NAMES = ("char", "byte", "bpe", "ids")


@dataclass
class DataConfig(kinds.DataConfig):
    """Which text a run trains on, how it is divided and in which order it is read."""

    name: str = "builtin"  # which corpus
    path: str | None = None  # own file, folder or glob; for a corpus that is downloaded, a local copy of it
    train_path: str | None = None  # own files, already divided: these instead of path
    val_path: str | None = None
    test_path: str | None = None
    split: list[float] | None = None  # [train, val] or [train, val, test] as fractions of the whole or as bytes
    order: Literal["random", "cube", "sequential"] = "random"  # random offsets, a permutation of chunks, or in order
    cache_dir: str | None = setting(None, identity=False)  # of downloads and tokens; unset: the user's cache folder

    def check_run(self, run: Config) -> None:
        check(self, run.tokenizer)  # type: ignore[arg-type]

    def file_hashes(self, group: str) -> dict[str, str]:
        from rwkv_lab.data.dataset import content_hashes

        return content_hashes(self)


@dataclass
class TokenizerConfig(kinds.TokenizerConfig):
    """How text becomes token ids."""

    name: str = "char"  # which kind of token
    path: str | None = setting(None, file=True)  # bpe: the tokenizer.json
    vocab_size: int | None = None  # ids: the number of token ids; unset: the largest one in the data plus one


for _name in DATA_NAMES:
    register("data", _name)(DataConfig)
for _name in TOKENIZER_NAMES:
    register("tokenizer", _name)(TokenizerConfig)


def check(data: DataConfig, tokenizer: TokenizerConfig) -> None:
    """Raises ``UserError`` for values and combinations that no file could make right."""
    own = [key for key in ("train_path", "val_path", "test_path") if getattr(data, key)]
    if data.name in ("builtin", "kjv") and (data.path or own):
        raise UserError(
            f"data.{own[0] if own else 'path'} has no use with data={data.name}: use data=text for own files"
        )
    if data.path and own:
        raise UserError(f"data.path and data.{own[0]} exclude each other: give one file to divide, or its parts")
    if own and not (data.train_path and data.val_path):
        missing = "train_path" if not data.train_path else "val_path"
        raise UserError(f"data.{missing} is missing: data.train_path and data.val_path go together")
    if data.name in ("text", "npy") and not (data.path or own):
        raise UserError(
            f"data.path is missing: data={data.name} needs data.path=FILE, or data.train_path and data.val_path"
        )
    if data.split is not None and data.name.startswith("simplebooks"):
        raise UserError(f"data.split has no use with data={data.name}: its parts are published")
    if data.split is not None:
        _check_split(list(data.split))
    elif data.name in ("builtin", "kjv", "enwik8", "text", "npy") and not own:
        raise UserError("data.split is missing: give fractions such as [0.9,0.1] or numbers of bytes")
    if tokenizer.name == "bpe" and not tokenizer.path:
        raise UserError("tokenizer.path is missing: tokenizer=bpe needs tokenizer.path=tokenizer.json")
    if tokenizer.name != "bpe" and tokenizer.path:
        raise UserError(f"tokenizer.path has no use with tokenizer={tokenizer.name}: only bpe reads a file")
    if tokenizer.name == "ids" and data.name != "npy":
        raise UserError(f"tokenizer=ids has no use with data={data.name}: only data=npy holds token ids")
    if tokenizer.name == "char" and data.name == "npy":
        raise UserError("tokenizer=char has no use with data=npy: choose ids, byte, or bpe with its tokenizer.path")
    if tokenizer.vocab_size is not None and (tokenizer.name != "ids" or tokenizer.vocab_size < 1):
        raise UserError(f"tokenizer.vocab_size={tokenizer.vocab_size} is allowed only with tokenizer=ids and from 1 up")


def _check_split(split: list[float]) -> None:
    shown = "[" + ",".join(f"{part:g}" for part in split) + "]"
    if len(split) not in (2, 3):
        raise UserError(f"data.split={shown} has {len(split)} parts: give [train, val] or [train, val, test]")
    if any(not part >= 0 for part in split) or not 0 < split[0] < float("inf"):
        raise UserError(f"data.split={shown}: parts are at least 0 and the training part is more")
    fractions = [part <= 1 for part in split]
    if all(fractions) and sum(split) > 1 + 1e-9:
        raise UserError(f"data.split={shown}: fractions add up to {sum(split):g}, more than 1")
    if not all(fractions) and any(part != int(part) for part in split):
        raise UserError(f"data.split={shown} mixes fractions and bytes: all at most 1, or all whole numbers")
