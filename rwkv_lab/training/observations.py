"""What a tracker wants to see at every evaluation beside the row: observations.jsonl, one JSON object a line.

    {"step": 100, "tokens": 204800,
     "grad_norm": {"emb": 0.1, "blocks.0": 0.4, ...},           L2 norm before clipping
     "half_life": {"blocks.0": {"edges": [...], "counts": [...]}, ...},   of the WKV mixes' channels, in log2 tokens
     "sample": {"prompt": "\\n", "text": "...", "val_bpb": 2.1}}

The file is replayed as metrics.csv is. Only a run in one process has it: ranks hold parts of the gradient.
"""

import json
import math
from typing import TYPE_CHECKING, Any

import torch

from rwkv_lab.inference import sampling
from rwkv_lab.runs.metrics import OBSERVATIONS, read_observations
from rwkv_lab.tracking.tracker import Observes
from rwkv_lab.util.io import write_atomic

if TYPE_CHECKING:
    from rwkv_lab.models.lm import LM
    from rwkv_lab.training.trainer import Training

EDGES = [float(edge) for edge in range(-6, 21)]  # log2 of half-lives from 1/64 of a token to a million
TEMPERATURE = 0.8


class Observer:
    """Writes the observations that the run's tracker asks for; does nothing if it asks for none."""

    def __init__(self, training: "Training"):
        """Keep the lines up to the training's progress: those of an update that is made again come again."""
        tracker: object = training.config.tracker
        self._weights, self._length = False, 0
        if isinstance(tracker, Observes) and training.world.size == 1:
            self._weights = tracker.watches_weights
            self._length = 0 if training.config.objective.bidirectional else tracker.sample_tokens
        self._training = training
        self._file = training.folder / OBSERVATIONS
        self._grad_norm: dict[str, float] = {}
        if self.active and self._file.is_file():
            kept = [line for line in read_observations(self._file) if line["step"] <= training.progress.step]
            write_atomic(self._file, "".join(json.dumps(line) + "\n" for line in kept).encode())

    @property
    def active(self) -> bool:
        return bool(self._weights or self._length)

    def gradients(self, norm: float) -> None:
        """Look at the clipped gradients of the update to come; ``norm`` is that of all before clipping."""
        if self._weights:
            clipped = gradient_norms(self._training.model)
            scale = norm / (math.hypot(*clipped.values()) or 1.0)
            # fp16 skips an update whose gradient is infinite.
            finite = math.isfinite(scale)
            self._grad_norm = {part: scale * value for part, value in clipped.items()} if finite else {}

    def append(self, step: int, tokens: int, val_bpb: float | None) -> None:
        """Write the line of the update just made and measured."""
        line: dict[str, Any] = {"step": step, "tokens": tokens}
        if self._weights:
            line |= {"grad_norm": self._grad_norm, "half_life": half_lives(self._training.model)}
        if self._length:
            line["sample"] = {**self._sample(), "val_bpb": val_bpb}
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _sample(self) -> dict[str, str]:
        training = self._training
        tokenizer, model = training.corpus.tokenizer, training.model
        generator = torch.Generator(training.resolved.device).manual_seed(training.config.seed)
        start, was_training = tokenizer.start(), model.training
        model.eval()
        try:
            with torch.no_grad(), training.resolved.autocast():
                ids = sampling.generate(model, start, self._length, generator=generator, temperature=TEMPERATURE)
        finally:
            model.train(was_training)
        return {"prompt": tokenizer.decode(start), "text": tokenizer.decode(ids)}


def gradient_norms(model: "LM") -> dict[str, float]:
    """Return the L2 norm of the gradient of each block and of each part outside them."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            words = name.split(".")
            part = ".".join(words[: 2 if words[0] == "blocks" else 1])
            squares[part] = squares.get(part, 0.0) + float(parameter.grad.detach().double().square().sum())
    return {part: math.sqrt(value) for part, value in squares.items()}


def half_lives(model: "LM") -> dict[str, dict[str, list[float]]]:
    """Return how many channels of each WKV mix forget half of what they sum in 2^edge tokens.

    A channel weighs what lies t tokens back by exp(-t exp(time_decay)), so its half-life is ln 2 exp(-time_decay).
    Channels beyond the first and last edge count in the first and last bin.
    """
    found = {}
    for layer, block in enumerate(model.blocks):
        decay = getattr(block.att, "time_decay", None)
        if isinstance(decay, torch.Tensor) and decay.ndim == 1:
            log2 = (math.log(math.log(2)) - decay.detach().float().cpu()) / math.log(2)
            counts = torch.histogram(log2.clamp(EDGES[0], EDGES[-1]), torch.tensor(EDGES)).hist
            found[f"blocks.{layer}"] = {"edges": EDGES, "counts": [float(count) for count in counts]}
    return found
