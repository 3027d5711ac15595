"""python -m benchmarks.data [MEGABYTES]: speed of tokenising a text and of reading batches from its tokens."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_type_hints

import numpy as np

from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.config.fields import choices
from rwkv_lab.config.kinds import DataConfig, TokenizerConfig
from rwkv_lab.data import sampling
from rwkv_lab.data.corpora.text import TextConfig
from rwkv_lab.data.dataset import load

CTX_LEN, BATCH, BATCHES = 256, 64, 500
WORDS = 4096


def synthetic_text(path: Path, megabytes: int, seed: int = 0) -> None:
    """Write ``megabytes`` · 10⁶ bytes of random words; one word in 64 has letters of two and three bytes."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = ["".join(draw.choice(letters, draw.integers(1, 10))) for _ in range(WORDS)]
    words[::64] = [word + "é…" for word in words[::64]]
    left = megabytes * 10**6
    with open(path, "wb") as file:
        while left > 0:
            block = " ".join(words[i] for i in draw.integers(0, WORDS, 1 << 17)).encode()[:left]
            file.write(block.decode("utf-8", "ignore").encode().ljust(len(block)))
            left -= len(block)


def table(megabytes: int) -> str:
    """Return a table in Markdown: megabytes per second and peak memory of tokenising, tokens per second of reading."""
    lines = [f"| tokenise {megabytes} MB | s | MB/s | peak memory MB |", "|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        synthetic_text(text, megabytes)
        for name in ("char", "byte"):
            # a process of its own, so that its peak memory is its own
            command = [sys.executable, "-m", "benchmarks.data", str(text), folder, name]
            seconds, peak = map(
                float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            )
            lines.append(f"| {name} | {seconds:.2f} | {megabytes / seconds:.0f} | {peak:.0f} |")
        train = load(*_configs(text, folder, "char")).train
        lines += ["", f"| read {BATCH} × {CTX_LEN} a batch | tokens/s |", "|---|---:|"]
        for order in choices(get_type_hints(DataConfig)["order"]):
            lines.append(f"| {order} | {_tokens_per_second(train.tokens, order):,.0f} |")
    return "\n".join(lines)


def _configs(text: Path, folder: str, tokenizer: str) -> tuple[DataConfig, TokenizerConfig]:
    return TextConfig(path=str(text), cache_dir=folder), registry.get("tokenizer", tokenizer)()


def _tokens_per_second(tokens: np.ndarray, order: str) -> float:
    started = time.perf_counter()
    for batch in range(BATCHES):
        starts = sampling.offsets(order, len(tokens), CTX_LEN, 1, batch * BATCH, BATCH)
        sampling.gather(tokens, starts, CTX_LEN)
    return BATCHES * BATCH * CTX_LEN / (time.perf_counter() - started)


def _tokenise(text: str, folder: str, tokenizer: str) -> None:
    started = time.perf_counter()
    load(*_configs(Path(text), folder, tokenizer))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(time.perf_counter() - started, peak)


def _megabytes(arguments: list[str]) -> int:
    size = int(arguments[0]) if len(arguments) == 1 and arguments[0].isdecimal() else 0 if arguments else 100
    if size < 1:
        raise UserError(f"MEGABYTES must be one positive integer, e.g. 100 (got {' '.join(arguments)})")
    return size


def main(arguments: list[str]) -> int:
    if len(arguments) == 3:
        _tokenise(*arguments)
    else:
        print(table(_megabytes(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
