"""Models made, saved and loaded again."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch

from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.config.fields import convert, validate
from rwkv_lab.config.kinds import ModelConfig
from rwkv_lab.models.lm import LM
from rwkv_lab.models.warm_start import check_start, initialise_from, stretch_time_vectors
from rwkv_lab.models.weights import METADATA_KEY, read_description, read_tensors, require_match, weights_file
from rwkv_lab.util.tensorfile import write_tensors

if TYPE_CHECKING:
    from rwkv_lab.data import Tokenizer

START_FIELDS = ("init_from", "init_vocab", "time_vectors_from")  # how a model began, needless once it has weights


def configure(name: str, **fields: Any) -> ModelConfig:
    """Return the checked configuration of a model; UserError for an unknown name or field or an impossible value."""
    owner: type[ModelConfig] = registry.get("model", name)
    known = [field.name for field in dataclasses.fields(owner)]
    for key in fields:
        if key not in known:
            raise UserError(f"model.{key} is unknown{nearest(key, known)}: {name} has {', '.join(known)}")
    hints = get_type_hints(owner)
    nested = {key: convert(hints[key], value, f"model.{key}") for key, value in fields.items() if type(value) is dict}
    config = owner(**{**fields, **nested, "name": name})
    check(config)
    return config


def check(config: ModelConfig) -> None:
    """Raise UserError if ``config`` describes a model that cannot be built."""
    validate(config, "model.")
    config.check()


def build(
    name: str,
    *,
    vocab_size: int,
    seed: int = 0,
    backend: str = "auto",
    tokenizer: "Tokenizer | None" = None,
    **fields: Any,
) -> LM:
    """Return a freshly initialised model in float32 on the CPU.

    fields     those of the model's config; init_from and time_vectors_from are followed
    seed       of the generator that all random numbers come from
    backend    scan of v2, v3 and v4, as in ``rwkv_lab.wkv``
    tokenizer  of the text, which init_from compares with the other model's

    Raises UserError for a model that cannot be built.
    """
    return construct(configure(name, **fields), vocab_size, seed=seed, backend=backend, tokenizer=tokenizer)


def construct(
    config: ModelConfig,
    vocab_size: int,
    *,
    seed: int = 0,
    backend: str = "auto",
    tokenizer: "Tokenizer | None" = None,
    warm: bool = True,
) -> LM:
    """Return the model of a checked configuration; ``warm=False`` ignores init_from and time_vectors_from."""
    model = skeleton(config, vocab_size, backend).to_empty(device="cpu")
    with torch.no_grad():
        config.initialise(model, torch.Generator().manual_seed(seed))
    if warm and getattr(config, "time_vectors_from", None):
        stretch_time_vectors(model, config.time_vectors_from)  # type: ignore[attr-defined]
    if warm and config.init_from:
        initialise_from(model, config.init_from, tokenizer, config.init_vocab)
    return model


def check_init(config: ModelConfig, tokenizer: "Tokenizer", extra_tokens: int = 0) -> str | None:
    """Return a note on the weights that a model of this ``tokenizer`` starts from, None if there is nothing to tell.

    ``extra_tokens`` is the number of ids behind the tokenizer's own.

    Raises UserError if they do not fit it: other sizes, or another tokenizer while model.init_vocab is unset. Reads
    headers only, so that a run can be refused before its directory is made.
    """
    if not config.start_files:
        return None
    return check_start(skeleton(config, tokenizer.vocab_size + extra_tokens), tokenizer)


def skeleton(config: ModelConfig, vocab_size: int, backend: str = "auto") -> LM:
    """Return the model of a checked configuration on the meta device: shapes without memory or values."""
    if vocab_size < 1:
        raise UserError(f"vocab_size must be at least 1 (got {vocab_size})")
    with torch.device("meta"):
        return config.build(vocab_size, backend)


def save(model: LM, path: str | Path) -> None:
    """Write weights and, as metadata, all that ``load`` needs to build the model again."""
    fields = {key: value for key, value in dataclasses.asdict(model.config).items() if key not in START_FIELDS}
    description = json.dumps({"vocab_size": model.vocab_size, **fields})
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(tensors, path, metadata={METADATA_KEY: description})


def load(path: str | Path, backend: str = "auto") -> LM:
    """Return the model of a run, by path, STUDY/NAME, name or id, or of a file that ``save`` wrote.

    On the CPU, in the file's own type. Raises UserError if the file does not exist or another program wrote it.
    """
    file = weights_file(path)
    description = read_description(file)
    if description is None:
        raise UserError(f"{file} does not describe its model: only files written by rwkv_lab do")
    try:
        fields: dict[str, Any] = json.loads(description)
        vocab_size = int(fields.pop("vocab_size"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} does not describe its model: its metadata {METADATA_KEY} is damaged") from None
    model = skeleton(configure(**fields), vocab_size, backend).to_empty(device="cpu")
    tensors = read_tensors(file)
    require_match(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, file)
    model.load_state_dict(tensors, assign=True)
    return model
