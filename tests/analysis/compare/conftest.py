"""Run directories as a trainer leaves them, without training."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

COLUMNS = ("step", "tokens", "lr", "train_loss", "val_loss", "val_bpb", "grad_norm", "seconds", "tokens_per_second")
FINGERPRINT = "code of this checkout"


def configuration(seed: int, model: dict[str, Any], data: str, **changes: Any) -> dict[str, Any]:
    """A resolved config.yaml; ``changes`` are dotted keys with ``__`` for the dot."""
    config: dict[str, Any] = {
        "study": "study",
        "seed": seed,
        "rerun": False,
        "dry_run": False,
        "model": {"n_layer": 4, "n_embd": 128, "ctx_len": 256, **model},
        "data": {"name": data, "path": None, "order": "random", "cache_dir": "cache"},
        "tokenizer": {"name": "char"},
        "optimizer": {"name": "adam", "betas": [0.9, 0.99]},
        "schedule": {"name": "cosine", "lr_init": 1e-3, "lr_final": 1e-5, "warmup_steps": 0},
        "trainer": {"tokens": 1_000_000, "batch_size": 8, "log_every": 10, "threads": 1},
        "tracker": {"name": "wandb", "mode": "offline", "tags": []},
        "ops": {"backend": "auto"},
    }
    for key, value in changes.items():
        group, name = key.split("__")
        config[group][name] = value
    return config


def curves(final: float, rows: int, end: float, speed: float, noise: np.random.Generator) -> dict[str, np.ndarray]:
    """Columns of a metrics.csv whose held-out bits per byte end at exactly ``final``."""
    step = np.arange(1, rows + 1) * 10
    share = step / step[-1]
    shape = 1.6 * (share + 0.01) ** -0.18
    bpb = shape - shape[-1] + final
    tokens = share * end
    evaluated = (np.arange(rows) % max(1, rows // 20) == 0) | (np.arange(rows) == rows - 1)
    return {
        "step": step,
        "tokens": tokens,
        "lr": 1e-3 * 0.5 * (1 + np.cos(np.pi * share)) + 1e-5,
        "train_loss": bpb * 0.72 + noise.normal(0, 0.05, rows),
        "val_loss": np.where(evaluated, bpb * 0.7, np.nan),
        "val_bpb": np.where(evaluated, bpb, np.nan),
        "grad_norm": np.ones(rows),
        "seconds": tokens / speed,
        "tokens_per_second": np.full(rows, speed),
    }


def manifest(name: str, study: str, config: dict[str, Any], status: str, facts: dict[str, Any]) -> dict[str, Any]:
    plain = {
        "format": 1,
        "id": name[-8:],
        "name": name,
        "study": study,
        "status": status,
        "reason": None,
        "overrides": [f"model={config['model']['name']}", f"seed={config['seed']}"],
        "git": {"commit": "0123456789abcdef", "dirty": None},
        "code": FINGERPRINT,
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "hardware": {"device": "cpu", "name": "A processor", "cores": 2, "memory_bytes": 2**34},
        "resolved": {"device": "cpu", "precision": "fp32", "ops_backend": "native", "threads": 1},
        "data": {"name": config["data"]["name"], "sha256": {config["data"]["name"]: "ab" * 32}, "notes": []},
        "parameters": 1_600_000,
        "flops_per_token": 9.7e6,
        "tokens": 1_000_000,
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:10:00+00:00",
        "peak_memory_bytes": 4e8,
    }
    return plain | facts


@pytest.fixture
def fingerprint() -> str:
    """The code that ``make_run`` says made the run."""
    return FINGERPRINT


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory: ``make_run("rwkv_v4", seed=1, final=1.8)``; its path."""

    def make(
        model: str = "rwkv_v4",
        seed: int = 1,
        final: float = 1.8,
        *,
        study: str = "study",
        data: str = "enwik8",
        status: str = "complete",
        rows: int = 100,
        part: float = 1.0,
        speed: float = 10_000.0,
        sample: str | None = "The text.",
        fields: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
        suffix: str = "00000000",
        **changes: Any,
    ) -> Path:
        config = configuration(seed, {"name": model, **(fields or {})}, data, **changes)
        folder = tmp_path / "runs" / study / f"{model}-{data}-s{seed}-{suffix}"
        folder.mkdir(parents=True)
        table = curves(final, rows, 1e6, speed, np.random.default_rng(seed))
        kept = int(rows * part)
        text = io.StringIO()
        np.savetxt(text, np.stack([table[name][:kept] for name in COLUMNS], axis=1), fmt="%.6g", delimiter=",")
        (folder / "metrics.csv").write_text(",".join(COLUMNS) + "\n" + text.getvalue().replace("nan", ""))
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
        result = {"train_loss": final * 0.72, "val_loss": final * 0.7, "val_bpb": final, "tokens_per_second": speed}
        known = {"seconds": 1e6 / speed * part} | (
            {"result": result | {"eval": "full"}} if status == "complete" else {}
        )
        content = manifest(folder.name, study, config, status, known | (facts or {}))
        (folder / "run.json").write_text(json.dumps(content))
        if sample is not None:
            (folder / "sample.txt").write_text(sample)
        return folder

    return make
