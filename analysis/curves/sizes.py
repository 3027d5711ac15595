"""How large the model of a run is, from its run.json, a schedules.json beside its log, or its name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.curves.curve import LossCurve
from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, is_run

COUNTS = ("all", "body")
HEAD = 64  # channels of an attention head, for names such as L12_H10
MULTIPLE = 256  # to which a llama's hidden width, 8/3 of its channels, is rounded up
_NAMED = re.compile(r"(?:^|_)L(\d+)_H(\d+)(?:_|$)")


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model with and without embedding and head, and what else is recorded; None if unknown."""

    all: float | None = None
    body: float | None = None
    tokens_per_step: float | None = None
    flops_per_token: float | None = None  # forward and backward

    def counted(self, how: str, name: str) -> float:
        """Return the parameters: ``all``, or ``body`` without embedding and head."""
        found: float | None = getattr(self, how)
        if found is None:
            raise UserError(
                f"{name}: its parameters are unknown: give --parameters N for every run, a run directory with "
                "run.json, a schedules.json with models beside the log, or a name with layers and heads, e.g. L12_H10"
                f"{', which gives --count body' if self.body else ''}"
            )
        return found


def size_of(curve: LossCurve) -> ModelSize:
    """Return what is known of the model of ``curve``."""
    path = Path(str(curve.meta.get("path", "")))
    if is_run(path.parent):
        return _of_run(Run(path.parent))
    described = path.parent / "schedules.json"
    if described.is_file():
        models = json.loads(described.read_text(encoding="utf-8")).get("models", {})
        found = [model for name, model in models.items() if curve.name.startswith(name)]
        if found:
            return _of_llama(found[0])
    named = _NAMED.search(curve.name)
    return ModelSize(body=llama_body(int(named[1]), HEAD * int(named[2]))) if named else ModelSize()


def llama_body(layers: int, channels: int) -> float:
    """Return the parameters of a llama-type transformer without embedding and head: 4 C^2 and 3 C x hidden a layer."""
    hidden = -(-8 * channels // 3 // MULTIPLE) * MULTIPLE
    return float(layers * (4 * channels**2 + 3 * channels * hidden))


def _of_run(run: Run) -> ModelSize:
    known = run.manifest
    if not known.get("parameters"):
        return ModelSize()
    model = run.config.get("model") or {}
    vocabulary = (known.get("data") or {}).get("vocab_size")
    both = 2.0 * vocabulary * model["n_embd"] if vocabulary and model.get("n_embd") else None
    tokens = known["tokens"] / known["steps"] if known.get("tokens") and known.get("steps") else None
    return ModelSize(
        float(known["parameters"]),
        known["parameters"] - both if both else None,
        tokens,
        known.get("flops_per_token"),
    )


def _of_llama(model: Mapping[str, Any]) -> ModelSize:
    """The model of a schedules.json: n_layer, n_embd, vocab (its head is the embedding), ctx and batch."""
    body = llama_body(int(model["n_layer"]), int(model["n_embd"]))
    tokens = float(model["ctx"] * model["batch"]) if {"ctx", "batch"} <= model.keys() else None
    return ModelSize(body + model["vocab"] * model["n_embd"] if "vocab" in model else None, body, tokens)
