"""Building a model from its name and fields."""

import dataclasses
from importlib import import_module
from typing import Any

import torch

from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.models.config import ModelConfig, ScanConfig, check
from rwkv_lab.models.lm import LM
from rwkv_lab.models.registry import MODELS
from rwkv_lab.models.weights import initialise_from, stretch_time_vectors


def configure(name: str, **fields: Any) -> ModelConfig:
    """The checked configuration of a model. Raises Mistake for an unknown name or field or an impossible value."""
    if name not in MODELS:
        raise UserError(f"model: there is no model {name!r}{nearest(name, MODELS)}; choose one of {', '.join(MODELS)}")
    known = [field.name for field in dataclasses.fields(MODELS[name].config)]
    for key in fields:
        if key not in known:
            raise UserError(f"model.{key}: {name} has no such field{nearest(key, known)}; it has {', '.join(known)}")
    config = MODELS[name].config(**{**fields, "name": name})
    check(config)
    return config


def build(name: str, *, vocab_size: int, seed: int = 0, backend: str = "auto", **fields: Any) -> LM:
    """A freshly initialised model in float32 on the CPU.

    fields are those of the model's dataclass in config.py; init_from and time_vectors_from are followed. backend
    chooses the scan of v2, v3 and v4 as in `rwkv_lab.ops.wkv`. All random numbers come from a generator seeded with
    `seed`.
    Raises Mistake for what cannot be built.
    """
    config = configure(name, **fields)
    model = skeleton(config, vocab_size, backend).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        import_module(MODELS[name].target).initialise(model, generator)
    if isinstance(config, ScanConfig) and config.time_vectors_from:
        stretch_time_vectors(model, config.time_vectors_from)
    if config.init_from:
        initialise_from(model, config.init_from)
    return model


def skeleton(config: ModelConfig, vocab_size: int, backend: str = "auto") -> LM:
    """The model of a checked configuration with parameters on the meta device: shapes without memory or values."""
    if vocab_size < 1:
        raise UserError(f"vocab_size is {vocab_size}; it must be at least 1")
    architecture = import_module(MODELS[config.name].target)
    with torch.device("meta"):
        blocks = architecture.blocks(config, backend)
        return LM(config, vocab_size, blocks, architecture.RECURRENT, architecture.FIXED_LENGTH)
