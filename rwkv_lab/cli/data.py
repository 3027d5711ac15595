"""Corpora from the command line. Imports no torch.

rwkv-lab data info [DATA] [key=value]...            size, splits, vocabulary, unknown rate, a sample, cache files
rwkv-lab data prepare [DATA] [key=value]...         download and tokenise now, ahead of a sweep
rwkv-lab data export PREFIX [DATA] [key=value]...   write its tokens as Megatron's PREFIX.train.bin, .idx and so on
rwkv-lab data train-bpe OUT.json SIZE FILE...       train a byte-level BPE tokenizer of SIZE tokens (tokenizer=bpe)

DATA and the keys are those of run.py: rwkv-lab data info enwik8 data.path=FILE tokenizer=byte
"""

import time
from pathlib import Path

from omegaconf import OmegaConf

from rwkv_lab.config import hydra, overrides, registry
from rwkv_lab.config.check import check
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.config.kinds import DataConfig, TokenizerConfig
from rwkv_lab.config.overrides import file_for_corpus
from rwkv_lab.data import Corpus, Split, load
from rwkv_lab.util.console import harmless
from rwkv_lab.util.hashing import expand
from rwkv_lab.util.io import write_atomic

SAMPLE = 300  # tokens
PARTS = ("train", "val", "test")
COMMANDS = ("info", "prepare", "export", "train-bpe")


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program's name) and return the exit code."""
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise UserError(f"{command} is unknown{nearest(command, COMMANDS)}: choose one of {', '.join(COMMANDS)}")
    if command == "train-bpe":
        return _train_bpe(rest)
    if command == "export":
        return _export(rest)
    data, tokenizer = configs(rest)
    started = time.perf_counter()
    corpus = load(data, tokenizer)
    if command == "info":
        print(harmless(described(data, corpus)))
    else:
        print(f"{data.name} is ready in {corpus.folder} ({time.perf_counter() - started:.1f} s)")
        for note in corpus.notes:
            print(f"note: {note}")
    return 0


def configs(arguments: list[str]) -> tuple[DataConfig, TokenizerConfig]:
    """Return the configs of ``[DATA] [key=value]...``, composed as by run.py; token ids default to tokenizer=ids."""
    words = [word for word in arguments if "=" not in word]
    texts = [word for word in arguments if "=" in word]
    chosen = [text.partition("=")[2] for text in texts if text.startswith("data=")]
    if len(words) + len(chosen) > 1:
        raise UserError(f"name one corpus, not {len(words) + len(chosen)}: {', '.join(registry.names('data'))}")
    name = (words or chosen or [""])[0]
    if words and words[0] not in registry.names("data") and (proposed := file_for_corpus(words[0])):
        raise UserError(proposed)
    texts += [f"data={word}" for word in words]
    held = getattr(registry.members("data").get(name), "holds", "text")
    if held == "token ids" and not any(text.startswith("tokenizer=") for text in texts):
        texts.append("tokenizer=ids")
    hydra.prepare()
    composed = hydra.compose(overrides.read(texts, multirun=False).texts)
    config = check(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))
    return config.data, config.tokenizer


def described(data: DataConfig, corpus: Corpus) -> str:
    """Return what ``info`` prints."""
    splits = {name: getattr(corpus, name) for name in PARTS}
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


def _export(arguments: list[str]) -> int:
    from rwkv_lab.data.corpora.binidx import write_pair

    if not arguments or "=" in arguments[0]:
        raise UserError("data export takes the PREFIX of the files to write, then DATA and keys, e.g. out/kjv kjv")
    prefix = Path(arguments[0])
    data, tokenizer = configs(arguments[1:])
    corpus = load(data, tokenizer)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    stored = prefix.with_name(f"{prefix.name}.tokenizer.json")
    write_atomic(stored, corpus.tokenizer.to_json().encode())
    for name in PARTS:
        split = getattr(corpus, name)
        if split is not None:
            write_pair(prefix.with_name(f"{prefix.name}.{name}"), split.tokens, corpus.tokenizer.vocab_size)
            print(f"{prefix}.{name}.bin and .idx: {len(split):,} tokens")
    print(f"{stored}: for tokenizer=run tokenizer.path={stored}")
    return 0


def _train_bpe(arguments: list[str]) -> int:
    from rwkv_lab.data.tokenizers.bpe import train

    size = arguments[1] if len(arguments) > 1 else ""
    if len(arguments) < 3 or not (size.isascii() and size.isdigit()):
        raise UserError("data train-bpe takes OUT.json, a number of tokens and files, e.g. tokenizer.json 8192 a.txt")
    files = [file for path in arguments[2:] for file in expand(path, "FILE")]
    train(Path(arguments[0]), int(size), files)
    print(f"{arguments[0]}: for tokenizer=bpe tokenizer.path={arguments[0]}")
    return 0
