"""Corpora from the command line: look at one, prepare the cache ahead of a sweep, measure speed. Imports no torch.

python -m rwkv_lab.data info DATA [key=value]...      size, splits, vocabulary, unknown rate, sample, cache files
python -m rwkv_lab.data prepare DATA [key=value]...   download and tokenise now
python -m rwkv_lab.data bench [megabytes]             tokenise and read a text of this size (100) and print a table

DATA and the keys are those of run.py: data info enwik8 data.path=FILE tokenizer=byte
"""

import dataclasses
import time
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.data.config import DataConfig, TokenizerConfig
from rwkv_lab.data.dataset import Corpus, load
from rwkv_lab.data.token_cache import Split
from rwkv_lab.util.paths import REPOSITORY

SAMPLE = 300
T = TypeVar("T")


def main(argv: list[str]) -> int:
    """Runs ``argv`` (without the program's name); returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    command, rest = argv[0], argv[1:]
    if command == "bench":
        from rwkv_lab.data.bench import table

        print(table(_megabytes(rest)))
        return 0
    if command not in ("info", "prepare"):
        raise UserError(f"{command} is unknown{nearest(command, ('info', 'prepare', 'bench'))}: info, prepare or bench")
    data, tokenizer = configs(rest)
    started = time.perf_counter()
    corpus = load(data, tokenizer)
    if command == "info":
        print(describe(data, corpus))
    else:
        print(f"{data.name} is ready in {corpus.folder} ({time.perf_counter() - started:.1f} s)")
        for note in corpus.notes:
            print(note)
    return 0


def configs(arguments: list[str]) -> tuple[DataConfig, TokenizerConfig]:
    """The configs that ``DATA [key=value]...`` means, from the same files of conf/ as run.py reads."""
    words = [word for word in arguments if "=" not in word]
    pairs = [word.split("=", 1) for word in arguments if "=" in word]
    chosen = dict(pair for pair in pairs if pair[0] in ("data", "tokenizer"))
    if len(words) + ("data" in chosen) != 1:
        raise UserError(f"one corpus is to be named, not {len(words)}: {', '.join(_options('data'))}")
    name = words[0] if words else chosen["data"]
    default = "ids" if name == "npy" else "char"
    data = _group("data", name, DataConfig, pairs)
    tokenizer = _group("tokenizer", chosen.get("tokenizer", default), TokenizerConfig, pairs)
    for key, _ in pairs:
        if key not in chosen and key.split(".")[0] not in ("data", "tokenizer"):
            raise UserError(f"{key} is unknown here: keys are data.… and tokenizer.…")
    return data, tokenizer


def describe(data: DataConfig, corpus: Corpus) -> str:
    """What ``info`` prints."""
    splits = {name: getattr(corpus, name) for name in ("train", "val", "test")}
    lines = [f"corpus      {data.name}"]
    lines += [f"source      {name}  sha256 {sha256}" for name, sha256 in corpus.sha256.items()]
    lines += [f"{name:<12}{_size(split)}" for name, split in splits.items() if split is not None]
    characters = getattr(corpus.tokenizer, "characters", "")
    shown = f": {characters[:80]!r}" + ("…" if len(characters) > 80 else "") if characters else ""
    lines.append(f"vocabulary  {corpus.tokenizer.vocab_size:,}{shown}")
    lines += [f"note        {note}" for note in corpus.notes]
    sample = corpus.tokenizer.decode(corpus.train.tokens[:SAMPLE].tolist())
    lines.append(f"sample      {sample!r}")
    if corpus.folder:
        lines.append(f"cache       {corpus.folder}")
        lines += [f"            {file.name:<16}{file.stat().st_size:>15,}" for file in sorted(corpus.folder.iterdir())]
    return "\n".join(lines)


def _size(split: Split) -> str:
    n_bytes = split.bytes_between(0, len(split))
    text = f"{len(split):>15,} tokens {n_bytes:>15,} bytes" if n_bytes else f"{len(split):>15,} tokens"
    return f"{text}   unknown {split.unknown:,} ({split.unknown / len(split):.4%})"


def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (REPOSITORY / "conf" / group).glob("*.yaml"))


def _group(group: str, option: str, schema: type[T], pairs: list[list[str]]) -> T:
    file: Path = REPOSITORY / "conf" / group / f"{option}.yaml"
    if not file.is_file():
        known = _options(group)
        raise UserError(f"{group}={option} does not exist{nearest(option, known)}: choose one of {', '.join(known)}")
    content = dict(OmegaConf.load(file))
    content.pop("defaults", None)
    fields = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    own = [(key.split(".", 1)[1], value) for key, value in pairs if key.startswith(f"{group}.")]
    for key, _ in own:
        if key not in fields:
            raise UserError(f"{group}.{key} is unknown{nearest(key, fields)}: {group} has {', '.join(fields)}")
    try:
        dots = OmegaConf.from_dotlist([f"{key}={value}" for key, value in own])
        merged = OmegaConf.merge(OmegaConf.structured(schema), content, dots)
    except OmegaConfBaseException as error:
        raise UserError(f"{group}.{error.full_key}: {str(error.msg).splitlines()[0]}") from None
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def _megabytes(arguments: list[str]) -> int:
    try:
        size = int(arguments[0]) if arguments else 100
    except ValueError:
        size = 0
    if size < 1 or len(arguments) > 1:
        raise UserError(f"bench {' '.join(arguments)}: one whole number of megabytes from 1 up is expected")
    return size
