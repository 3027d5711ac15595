"""Any model, opened by name: a run, a checkpoint of the original, a Hugging Face folder."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from rwkv_lab.config.errors import UserError
from rwkv_lab.models import huggingface
from rwkv_lab.models.factory import load, skeleton
from rwkv_lab.models.lm import LM
from rwkv_lab.models.rwkv_lm_format import detected, load_original
from rwkv_lab.models.weights import (
    is_hugging_face,
    original_names,
    read_description,
    read_tensors,
    require_numbers,
    weights_file,
)

if TYPE_CHECKING:
    from torch import Tensor

    from rwkv_lab.data import Tokenizer
    from rwkv_lab.runs import Run


class Opened(NamedTuple):
    """A model with the tokenizer it was trained with."""

    model: LM  # on the CPU, in the file's own floating types
    tokenizer: "Tokenizer | None"  # None if none was given and none lies beside the weights


def open_model(
    text: str | Path,
    tokenizer: str | Path | None = None,
    *,
    version: str | None = None,
    model_type: str | None = None,
    **sizes: Any,
) -> Opened:
    """Return the model that ``text`` names and its tokenizer.

    text        run (path, STUDY/NAME, name or id), .safetensors file, original checkpoint (.pth of v1 to v4), Hugging
                Face folder of RwkvForCausalLM
    tokenizer   tokenizer.json of a run or of the tokenizers library; unset: the one beside the weights
    version     v1 | v2 | v3 | v4 of an original checkpoint, with ``model_type`` and ``sizes`` as in ``load_original``;
                unset: as the tensors show

    Raises UserError for weights that are damaged, of another kind of model or have NaN in them, and for a tokenizer
    with more tokens than the model.
    """
    folder = Path(text).expanduser()
    if huggingface.is_folder(folder):
        settings = huggingface.read_config(folder)
        tensors, file = huggingface.read_tensors(folder), folder / huggingface.CONFIG
        sizes = {"ctx_len": int(settings.get("context_length", 1024))} | sizes
        model = _original(tensors, folder, version, model_type, sizes)
    else:
        file = weights_file(text)
        _verify(file)
        if read_description(file) is not None:
            model = load(file)
            require_numbers(model.state_dict(), file)
        else:
            model = _original(read_tensors(file), file, version, model_type, sizes)
    return Opened(model, _tokenizer(tokenizer, file.parent, model))


def with_tokenizer(text: str | Path, tokenizer: str | Path | None) -> "tuple[LM, Tokenizer]":
    """Return model and tokenizer as ``open_model`` does; UserError if there is no tokenizer."""
    model, found = open_model(text, tokenizer)
    if found is None:
        raise UserError(f"{text} has no tokenizer.json beside its weights: give --tokenizer FILE")
    return model, found


def run_of(text: str | Path) -> "Run | None":
    """Return the run whose weights ``text`` names; None if they are not in a run directory."""
    from rwkv_lab import runs

    folder = Path(text).expanduser()
    if not huggingface.is_folder(folder):
        folder = weights_file(text).parent
    return runs.load(folder) if runs.is_run(folder) else None


def _original(
    tensors: "dict[str, Tensor]", source: Path, version: str | None, model_type: str | None, sizes: dict[str, Any]
) -> LM:
    require_numbers(tensors, source)
    by_original = original_names(tensors)
    try:
        if version is None and model_type is None:
            version, model_type = detected(by_original)
        return load_original(by_original, version or "v4", model_type or "RWKV", **sizes)
    except UserError as error:
        written = " (a checkpoint of transformers)" if is_hugging_face(tensors) else ""
        raise UserError(f"{source}{written}: {error}") from None


def _verify(file: Path) -> None:
    from rwkv_lab.runs.manifest import verify

    verify(file.parent, file.name, "tokenizer.json")


def _tokenizer(given: str | Path | None, folder: Path, model: LM) -> "Tokenizer | None":
    file = Path(given).expanduser() if given is not None else folder / "tokenizer.json"
    if given is None and not file.is_file():
        return None
    tokenizer = read_tokenizer(file)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{file} has {tokenizer.vocab_size} tokens, the model only {model.vocab_size}: give the tokenizer it was "
            "trained with"
        )
    return tokenizer


def read_tokenizer(file: Path) -> "Tokenizer":
    """Return the tokenizer of a tokenizer.json, a run's or one of the tokenizers library; UserError if it has none."""
    from rwkv_lab import data

    file = file / "tokenizer.json" if file.is_dir() else file
    try:
        tokenizer = data.from_json(file.read_text(encoding="utf-8", errors="replace"))
        _ = tokenizer.vocab_size
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; give a tokenizer.json") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # the tokenizers package raises plain Exception for a bad file
        raise UserError(f"{file} is not a readable tokenizer.json: {error}") from None
    return tokenizer


@torch.no_grad()
def absorb_norm(model: LM) -> LM:
    """Return the model with ln0(emb) as its embedding and no ln0: each row is normalised once, and never again.

    Raises UserError for a model without that norm, or with post-norm, whose first block needs it after training too.
    """
    ln0 = model.blocks[0].ln0
    if not isinstance(ln0, nn.LayerNorm):
        why = "its blocks are post-norm" if model.config.norm == "post" else "it has none"
        raise UserError(f"this {model.config.name} has no norm after the embedding to absorb: {why}")
    config = dataclasses.replace(
        model.config, emb_init=model.config.embedding_start, small_init_emb=None, emb_norm=False
    )
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith("blocks.0.ln0.")}
    tensors["emb.weight"] = ln0(model.emb.weight)
    absorbed = skeleton(config, model.vocab_size)
    absorbed.load_state_dict(tensors, assign=True)
    return absorbed.requires_grad_(True)
