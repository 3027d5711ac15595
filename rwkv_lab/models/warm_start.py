"""Starting from a trained model: all of its weights, its rows of the same tokens, or its time vectors stretched.

Row i of the embedding and of the head means token i, so weights go with the tokenizer they were trained with: the
tokenizer.json beside a run's weights is compared with that of the text.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.kinds import ModelConfig
from rwkv_lab.models.lm import LM
from rwkv_lab.models.weights import read_ours, read_shapes, require_match, require_numbers, weights_file

if TYPE_CHECKING:
    from rwkv_lab.data import Tokenizer

VOCABULARY_ROWS = ("emb.weight", "head.weight")  # [V,C]
UNKNOWN = ("unknown",)  # key of the id that stands for every other token
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def check_start(model: LM, tokenizer: "Tokenizer") -> str | None:
    """Return a note on the rows that ``model`` takes from the run it starts from, None if there is nothing to tell.

    Reads headers only; the parameters of ``model`` may be on the meta device. Raises UserError as ``initialise_from``
    and ``stretch_time_vectors`` do.
    """
    config = model.config
    if (source := config.start_files.get("time_vectors_from")) is not None:
        file = weights_file(source, "model.time_vectors_from")
        for vector in _vectors(model):
            _require_vector(vector, read_shapes(file), file)
    if not config.init_from:
        return None
    file = weights_file(config.init_from, "model.init_from")
    matched = config.init_vocab == "match"
    note = _check_tokenizers(config, file, tokenizer)
    require_match(model, read_shapes(file), file, apart_from=VOCABULARY_ROWS if matched else ())
    return note


def _check_tokenizers(config: ModelConfig, file: Path, tokenizer: "Tokenizer") -> str | None:
    theirs = _tokenizer_beside(file)
    if config.init_vocab == "match":
        rows = matching_rows(_required(theirs, file), tokenizer)
        new = tokenizer.vocab_size - len(rows)
        return (
            f"model.init_vocab=match: {len(rows)} of {tokenizer.vocab_size} tokens take their rows from "
            f"{file.parent.name}, {new} new {'one is' if new == 1 else 'ones are'} initialised"
        )
    if theirs is not None and not same_tokenizer(theirs, tokenizer):
        raise UserError(
            f"model.init_from={file.parent} was trained with another tokenizer ({_shown(theirs)}) than this text "
            f"has ({_shown(tokenizer)}): add tokenizer=run tokenizer.path={file.parent / 'tokenizer.json'} to read "
            "the text with that one, or model.init_vocab=match to carry over the rows of the tokens both have"
        )
    return None


def initialise_from(
    model: LM, path: str | Path, tokenizer: "Tokenizer | None" = None, init_vocab: str | None = None
) -> None:
    """Copy the weights of a run, a checkpoint of any program or a Hugging Face folder into ``model``.

    ctx_len may differ if no parameter depends on it (v2, v3, v4; MHA_rotary and MHA_shift without time_out).
    ``tokenizer`` is that of the model's text; unset: only the size of the vocabulary is compared. With ``init_vocab``
    "match" rows of emb and head follow their tokens, and those of other tokens stay as they are. Raises UserError if a
    name or shape differs, or the tokenizer.
    """
    file = weights_file(path, "model.init_from")
    tensors, theirs = read_ours(file), _tokenizer_beside(file)
    require_numbers(tensors, file)
    own = model.state_dict()
    if init_vocab == "match":
        if tokenizer is None:
            raise UserError("model.init_vocab=match needs the tokenizer of the text: build(..., tokenizer=...)")
        rows = matching_rows(_required(theirs, file), tokenizer)
        require_match(model, _shapes(tensors), file, apart_from=VOCABULARY_ROWS)
        for name in VOCABULARY_ROWS:
            tensors[name] = _merged(tensors[name], own[name], rows, file, name)
    else:
        if tokenizer is not None:
            _check_tokenizers(model.config, file, tokenizer)
        require_match(model, _shapes(tensors), file)
    model.load_state_dict(tensors)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _merged(theirs: Tensor, own: Tensor, rows: Mapping[int, int], file: Path, name: str) -> Tensor:
    """Return ``own`` [V,C] with row i replaced by row rows[i] of ``theirs`` [V',C]."""
    if theirs.shape[1] != own.shape[1]:
        raise UserError(f"{file}: {name} has {theirs.shape[1]} channels there and {own.shape[1]} in this model")
    merged = own.clone()
    merged[list(rows)] = theirs[list(rows.values())].to(own.dtype)
    return merged


def matching_rows(theirs: "Tokenizer", own: "Tokenizer") -> dict[int, int]:
    """Return, for each id of ``own`` whose token ``theirs`` has too, the id it has there."""
    raw = _kind(theirs) == _kind(own) == "bpe"
    there, here = _ids_by_token(theirs, raw), _ids_by_token(own, raw)
    return {i: there[token] for token, i in here.items() if token in there}


def _ids_by_token(tokenizer: "Tokenizer", raw: bool) -> dict[Any, int]:
    """Return each token's id: by the vocabulary's own spelling if ``raw``, else by the text it stands for.

    Tokens that are part of a character, and so have no text of their own, are left out, and so are texts that several
    tokens stand for.
    """
    if raw:
        stored = json.loads(tokenizer.to_json())["tokenizer"]
        vocabulary = stored["model"]["vocab"]
        pairs = (
            vocabulary.items() if isinstance(vocabulary, dict) else ((row[0], i) for i, row in enumerate(vocabulary))
        )
        return {**dict(pairs), **{added["content"]: added["id"] for added in stored.get("added_tokens", [])}}
    unknown = tokenizer.unknown_id
    texts: list[Any] = [UNKNOWN if i == unknown else tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    counts: dict[Any, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    return {text: i for i, text in enumerate(texts) if counts[text] == 1 and text and REPLACEMENT not in text}


def same_tokenizer(one: "Tokenizer", other: "Tokenizer") -> bool:
    """Return whether both give every text the same ids, as far as their stored forms tell."""
    if json.loads(one.to_json()) == json.loads(other.to_json()):
        return True
    # Two kinds may be the same: a character tokenizer written for transformers comes back as bpe.
    forms = [getattr(tokenizer, "hugging_face", lambda: None)() for tokenizer in (one, other)]
    return forms[0] is not None and bool(forms[0] == forms[1])


def _tokenizer_beside(file: Path) -> "Tokenizer | None":
    from rwkv_lab import data

    stored = file.parent / "tokenizer.json"
    if not stored.is_file():
        return None
    return data.from_json(stored.read_text(encoding="utf-8", errors="replace"))


def _required(tokenizer: "Tokenizer | None", file: Path) -> "Tokenizer":
    if tokenizer is None:
        raise UserError(f"model.init_vocab=match needs {file.parent / 'tokenizer.json'}, which does not exist")
    return tokenizer


def _kind(tokenizer: "Tokenizer") -> str:
    return str(json.loads(tokenizer.to_json()).get("kind"))


def _shown(tokenizer: "Tokenizer") -> str:
    return f"{_kind(tokenizer)}, {tokenizer.vocab_size} tokens"


def stretch_time_vectors(model: LM, path: str | Path) -> None:
    """Fill the time_* vectors of ``model`` with those of a smaller trained model.

    Each vector is sorted and smoothed over its channels, then interpolated over channels and layers. Raises UserError
    if the file lacks them.
    """
    file = weights_file(path, "model.time_vectors_from")
    tensors = read_ours(file)
    for vector in _vectors(model):
        _require_vector(vector, tensors, file)
        sources = [tensors[name] for name in sorted(tensors, key=_layer) if _vector(name) == vector]
        targets = [parameter for name, parameter in model.named_parameters() if _vector(name) == vector]
        shape = (len(targets), targets[0].shape[0])
        with torch.no_grad():
            for target, row in zip(targets, stretched(torch.stack(sources).float(), shape), strict=True):
                target.copy_(row)


def stretched(vectors: Tensor, shape: tuple[int, int]) -> Tensor:
    """Vectors [L0,C0], sorted and smoothed over a 32nd of the channels, interpolated linearly to shape [L,C]."""
    rows = vectors.sort(dim=1).values
    reach = rows.shape[1] // 64
    padded = F.pad(rows.unsqueeze(1), (reach, reach), mode="replicate")
    smooth = F.avg_pool1d(padded, 2 * reach + 1, stride=1)  # [L0,1,C0]
    return F.interpolate(smooth.transpose(0, 1).unsqueeze(0), size=shape, mode="bilinear", align_corners=True)[0, 0]


def _vectors(model: LM) -> list[str]:
    return sorted({_vector(name) for name, _ in model.named_parameters() if _vector(name)})


def _require_vector(vector: str, present: Collection[str], file: Path) -> None:
    if not any(_vector(name) == vector for name in present):
        raise UserError(f"model.time_vectors_from: {file} has no {vector}; version and token shift must agree")


def _vector(name: str) -> str:
    """``att.time_decay`` for ``blocks.3.att.time_decay``; empty for any other kind of parameter."""
    parts = name.split(".")
    return ".".join(parts[2:]) if parts[0] == "blocks" and parts[-1].startswith("time_") else ""


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else -1
