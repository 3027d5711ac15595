"""python -m benchmarks.speed [ROW...] [--clock wall|processor]: the table of experiments/speed.md, under 10 minutes.

Contenders take turns and every figure is a median. On a machine that others keep busy, give --clock processor: the time
of this process's own threads, which a full memory bus still lengthens. Random weights and a text made here.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.timing import CLOCKS, interleave
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.runs.provenance import processor_name

if TYPE_CHECKING:
    from torch import Tensor

    from rwkv_lab.models.lm import LM

VOCABULARY = 50277  # of the tokenizer of the published RWKV v4
SIZES = {"169M": {"n_layer": 12, "n_embd": 768}, "tiny": {"n_layer": 4, "n_embd": 128}}
TEXT_BYTES = 20_000_000
SECONDS = 8.0  # of training, in the row on two runs at once


class Row(NamedTuple):
    """One figure."""

    what: str
    value: float
    unit: str


def model_of(size: str, vocab_size: int = VOCABULARY) -> "LM":
    """Return a v4 of a named size with constant weights, which are quickly made."""
    import torch

    from rwkv_lab.models.factory import configure, skeleton

    model = skeleton(configure("rwkv_v4", ctx_len=1024, **SIZES[size]), vocab_size).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    return model.eval()


def decoding(clock: str) -> Iterator[Row]:
    """A token at 169M by kind of weights, beside a read of as many bytes; a token of a tiny model."""
    import torch

    from rwkv_lab.inference.recurrent import RecurrentModel

    for size, vocab_size, turns in (("169M", VOCABULARY, 15), ("tiny", 65, 200)):
        model, token = model_of(size, vocab_size), torch.tensor([1])
        runs: dict[str, Callable[[], object]] = {}
        for kind in ("fp32", "bf16", "int8"):
            recurrent = RecurrentModel(model, kind)
            runs[kind] = functools.partial(recurrent.step, token, recurrent.step(token)[1])
        if size == "169M":
            numbers = torch.ones(sum(p.numel() for p in model.parameters()) - model.emb.weight.numel())
            runs["a read of the fp32 weights"] = numbers.sum
        for kind, milliseconds in interleave(runs, turns, CLOCKS[clock]).items():
            yield Row(f"decode v4 {size}, {kind}", milliseconds, "ms a token")


def prefill(clock: str) -> Iterator[Row]:
    """256 tokens at 169M, with the logits of the last position."""
    import torch

    from rwkv_lab.inference.recurrent import RecurrentModel

    recurrent, idx = RecurrentModel(model_of("169M")), torch.arange(256).unsqueeze(0)

    def half() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            recurrent.read(idx)

    runs = {"fp32": lambda: recurrent.read(idx), "bf16": half}
    for precision, milliseconds in interleave(runs, 3, CLOCKS[clock]).items():
        yield Row(f"prefill 256 tokens, 169M, {precision}", 256e3 / milliseconds, "tokens/s")


def sampling(clock: str) -> Iterator[Row]:
    """Probabilities of a vocabulary of 50,277, by filter."""
    import torch

    from rwkv_lab.inference.sampling import filter_logits

    logits = 3 * torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1))
    filters: dict[str, dict[str, float]] = {"no filter": {}, "top_p 0.8": {"top_p": 0.8}, "top_k 40": {"top_k": 40}}
    runs: dict[str, Callable[[], object]] = {}
    for name, given in filters.items():
        runs[name] = functools.partial(filter_logits, logits, **given)  # type: ignore[arg-type]
    for name, milliseconds in interleave(runs, 15, CLOCKS[clock]).items():
        yield Row(f"sampling at V {VOCABULARY:,}, {name}", milliseconds, "ms")


def training(clock: str) -> Iterator[Row]:
    """A training step of v4, L4 D128."""
    from benchmarks.training import VOCABULARY as SMALL
    from benchmarks.training import training_step
    from rwkv_lab import models

    runs: dict[str, Callable[[], object]] = {}
    for precision in ("fp32", "bf16"):
        model = models.build("rwkv_v4", vocab_size=SMALL, n_layer=4, n_embd=128, ctx_len=256)
        runs[precision] = training_step(model, 8, 256, precision, "cpu")
    for precision, milliseconds in interleave(runs, 7, CLOCKS[clock]).items():
        yield Row(f"training v4, L4 D128, {precision}", 8 * 256e3 / milliseconds, "tokens/s")


def two_runs(clock: str) -> Iterator[Row]:
    """One training alone, and two at once, with the default threads: always by the wall clock."""
    for ways in ("sharing", "spinning"):
        yield Row(f"one run, {ways}", sum(_trained(1, ways)), "tokens/s")
        yield Row(f"two runs at once, {ways}, sum", sum(_trained(2, ways)), "tokens/s")


def _trained(count: int, ways: str) -> list[float]:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "benchmarks.speed", "--worker", ways]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(count)]
    return [float(process.communicate()[0]) for process in running]


def train_for_a_while(ways: str) -> None:
    """Print the tokens per second of a training that lasts ``SECONDS`` after two to begin with."""
    import contextlib

    import torch

    from benchmarks.training import VOCABULARY as SMALL
    from benchmarks.training import training_step
    from rwkv_lab import models
    from rwkv_lab.ops.waiting import sharing_cores

    model = models.build("rwkv_v4", vocab_size=SMALL, n_layer=4, n_embd=128, ctx_len=128)
    step = training_step(model, 16, 128, "fp32", "cpu")
    with sharing_cores(torch.get_num_threads()) if ways == "sharing" else contextlib.nullcontext():
        end = time.monotonic() + 2
        while time.monotonic() < end:
            step()
        begin, count = time.monotonic(), 0
        while time.monotonic() < begin + SECONDS:
            step()
            count += 1
        print(count * 16 * 128 / (time.monotonic() - begin))


def jobs(clock: str) -> Iterator[Row]:
    """Processor time of a job of three updates, in a fresh process and forked: always by the processor's clock."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from rwkv_lab.config.hydra import prepare
    from rwkv_lab.sweeps.job import command
    from rwkv_lab.sweeps.server import ForkServer
    from rwkv_lab.util.paths import CONF

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(made_text(200_000))
        words = ["data=text", f"data.path={text}", "trainer.steps=3", "model.n_layer=1", "model.n_embd=16"]
        words += ["model.ctx_len=32", "tracker=none", f"runs_dir={folder}"]
        begun = _children_seconds(os.getpid())
        subprocess.run(command([*words, "seed=1"]), stdout=subprocess.DEVNULL, check=True)
        yield Row("a job of three updates, a fresh process", _children_seconds(os.getpid()) - begun, "CPU-s")
        prepare()
        server, taken = ForkServer({**os.environ, "OMP_NUM_THREADS": "1"}), []
        for seed in ("seed=2", "seed=3", "seed=4"):
            with initialize_config_dir(str(CONF), version_base="1.3"):
                config: Any = OmegaConf.to_container(compose("config", [*words, seed]), resolve=False)
            begun = _children_seconds(server.pid)
            server.run(config, [*words, seed], os.environ, quiet=True)
            taken.append(_children_seconds(server.pid) - begun)
        server.close()
    yield Row("a job of three updates, forked", float(np.median(taken)), "CPU-s")


def _children_seconds(pid: int) -> float:
    """Return the processor time of the processes that ``pid`` started and that have ended (Linux)."""
    numbers = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(numbers[13]) + int(numbers[14])) / os.sysconf("SC_CLK_TCK")


def made_text(size: int) -> str:
    """Return ``size`` characters of 20,000 invented words, the n-th as frequent as 1/n."""
    random = np.random.default_rng(1)
    letters = random.choice(list("etaoinshrdlucmfwypvbgk"), (20_000, 9))
    lengths = random.integers(2, 9, 20_000)
    words = np.array(["".join(row[:length]) for row, length in zip(letters, lengths, strict=True)])
    often = 1 / np.arange(1, 20_001)
    return " ".join(random.choice(words, size // 3, p=often / often.sum()))[:size]


def tokenizing(clock: str) -> Iterator[Row]:
    """20 MB of text to ids on the disk, by tokenizer, in a fresh cache each turn; a tenth of it by BPE, the slowest."""
    from rwkv_lab.data.tokenizers import bpe

    with tempfile.TemporaryDirectory() as folder:
        sizes = {"whole": TEXT_BYTES, "tenth": TEXT_BYTES // 10}
        texts = {name: Path(folder) / f"{name}.txt" for name in sizes}
        for name, text in texts.items():
            text.write_text(made_text(sizes[name]))
        trained = Path(folder) / "tokenizer.json"
        bpe.train(trained, 2000, [texts["tenth"]])
        for name, settings, part in (
            ("byte", {}, "whole"),
            ("char", {}, "whole"),
            ("bpe", {"path": str(trained)}, "tenth"),
        ):
            turns = iter(range(100))
            run = functools.partial(_prepare, texts[part], name, settings, folder, turns)
            milliseconds = interleave({name: run}, 3, CLOCKS[clock])[name]
            yield Row(f"tokenize, {name}", sizes[part] / milliseconds / 1e3, "MB/s")


def _prepare(text: Path, name: str, settings: dict[str, str], folder: str, turns: Iterator[int]) -> None:
    from rwkv_lab import data
    from rwkv_lab.config import registry

    fresh = f"{folder}/cache-{name}-{next(turns)}"
    data.load(
        registry.get("data", "text")(path=str(text), cache_dir=fresh), registry.get("tokenizer", name)(**settings)
    )


def fitting(clock: str) -> Iterator[Row]:
    """Two curves of 100,000 points, by law."""
    from analysis.curves.curve import LossCurve
    from analysis.fit import fit

    step = np.arange(1, 100_001)
    share = np.clip((step - 500) / (len(step) - 500), 0, 1)
    curves: list[LossCurve] = []
    for name, decay in (("cosine", 0.5 * (1 + np.cos(np.pi * share))), ("linear", 1 - share)):
        lr = np.where(step <= 500, 1e-3 * step / 500, 1e-4 + 9e-4 * decay)
        noise = 0.02 * np.random.default_rng(len(curves)).standard_normal(len(step))
        loss = np.minimum(2 + 0.6 * np.cumsum(lr) ** -0.3 + 30 * lr, 8) + noise
        curves.append(LossCurve(step, loss, lr, {"name": name}))
    for law in ("vplus", "auto"):
        seconds = interleave({law: functools.partial(fit, curves, law, "auto")}, 1, CLOCKS[clock])[law] / 1e3
        yield Row(f"fit of two curves of 100k points, {law}", seconds, "s")


def checkpoints(clock: str) -> Iterator[Row]:
    """A checkpoint at 169M with Adam's state: what the loop waits, and the whole of it; 1.5B by its size."""
    import torch

    from rwkv_lab.training.checkpoint import Progress, Saver

    model = model_of("169M")
    tensors = {f"{part}.{name}": p for part in ("model", "m", "v") for name, p in model.state_dict().items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    waits, rates, plain = [], [], []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        saver = Saver(Path(folder) / "checkpoints")
        for step in range(2):
            begin = time.monotonic()
            saver.begin(Progress(step=step), tensors)
            waits.append(time.monotonic() - begin)
            saver.finish()
            rates.append(size / (time.monotonic() - begin) / 1e6)
            plain.append(_written(Path(folder) / "plain", torch.ones(size // 8, dtype=torch.float32)))
    yield Row("checkpoint at 169M: the loop waits", float(np.median(waits)), "s")
    yield Row("checkpoint at 169M: written", float(np.median(rates)), "MB/s")
    yield Row("a plain file, written and synced", float(np.median(plain)), "MB/s")
    yield Row("checkpoint at 1.5B: written, by its size", 18e3 / float(np.median(rates)), "s")


def _written(path: Path, numbers: "Tensor") -> float:
    begin = time.monotonic()
    with open(path, "wb") as file:
        file.write(numbers.numpy().data)
        os.fsync(file.fileno())
    path.unlink()
    return numbers.nbytes / (time.monotonic() - begin) / 1e6


ROWS = {
    "two": two_runs,
    "jobs": jobs,
    "training": training,
    "decode": decoding,
    "prefill": prefill,
    "sampling": sampling,
    "tokenize": tokenizing,
    "fit": fitting,
    "checkpoint": checkpoints,
}


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description="Measure the rows of speed.md anew.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which of {', '.join(ROWS)} (all)")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="what to measure with (wall)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--worker", choices=["sharing", "spinning"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train_for_a_while(options.worker)
        return 0
    for name in options.rows:
        if name not in ROWS:
            raise UserError(f"{name} is not a row: choose among {', '.join(ROWS)}")
    print(f"{processor_name()}, {os.cpu_count()} cores; {options.clock} clock; one thread but for two runs\n")
    print("| what | now | |\n| --- | ---: | --- |")
    found = []
    for name in options.rows or ROWS:
        for row in ROWS[name](options.clock):
            found.append(row)
            print(f"| {row.what} | {row.value:.4g} | {row.unit} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main_guard(main))
