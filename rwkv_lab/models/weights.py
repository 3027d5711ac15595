"""Model weights on disk: a .safetensors file that says in its metadata which model it holds, or the one in a run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from rwkv_lab.config.errors import UserError
from rwkv_lab.models.lm import LM
from rwkv_lab.util.tensorfile import write_tensors

METADATA_KEY = "rwkv_lab.model"
START_FIELDS = ("init_from", "time_vectors_from")  # how a model began, needless once it has weights


def weights_file(path: str | Path) -> Path:
    """The .safetensors file meant by `path`: itself or a run folder's model.safetensors; Mistake for neither."""
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        hint = " (a run writes it when it completes)" if path.is_dir() else ""
        raise UserError(f"{file}: no such file{hint}")
    if file.suffix != ".safetensors":
        raise UserError(
            f"{file}: not a .safetensors file; python -m rwkv_lab.convert makes one of an original checkpoint"
        )
    return file


def save(model: LM, path: str | Path) -> None:
    """Writes weights and, as metadata, all that `load` needs to build the model again."""
    fields = {key: value for key, value in dataclasses.asdict(model.config).items() if key not in START_FIELDS}
    description = json.dumps({"vocab_size": model.vocab_size, **fields})
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(tensors, path, metadata={METADATA_KEY: description})


def load(path: str | Path, backend: str = "auto") -> LM:
    """The model in a run folder or a file that `save` wrote, in the file's own type, on the CPU.

    Raises Mistake where the file is not one of ours.
    """
    from rwkv_lab.models.factory import configure, skeleton

    file = weights_file(path)
    try:
        with safe_open(file, "pt") as opened:
            description = (opened.metadata() or {}).get(METADATA_KEY)
    except SafetensorError as error:
        raise UserError(f"{file}: not a readable .safetensors file ({error})") from error
    if description is None:
        raise UserError(f"{file}: it does not say which model it holds; only files written by rwkv_lab do")
    fields: dict[str, Any] = json.loads(description)
    vocab_size = fields.pop("vocab_size")
    model = skeleton(configure(**fields), vocab_size, backend).to_empty(device="cpu")
    tensors = _read(file)
    require_match(model, tensors, str(file))
    model.load_state_dict(tensors, assign=True)
    return model


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file}: not a readable .safetensors file ({error})") from error


def require_match(model: LM, tensors: dict[str, Tensor], source: str) -> None:
    """Raises Mistake unless `tensors` are the model's parameters in name and shape."""
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in sorted(own.keys() | tensors.keys()):
        there = tuple(tensors[name].shape) if name in tensors else None
        if own.get(name) != there:
            here = own.get(name)
            raise UserError(
                f"{source}: {name} is {_shape(there)} there and {_shape(here)} in this {model.config.name}; "
                "vocabulary, sizes and tricks must agree"
                + (" (and ctx_len, which this parameter depends on)" if _per_position(name) else "")
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _per_position(name: str) -> bool:
    return name.endswith(("time_w", "time_alpha", "time_beta", "time_gamma", "time_out"))


def initialise_from(model: LM, path: str | Path) -> None:
    """Copies the weights of a run folder or .safetensors file into `model`.

    ctx_len may differ where no parameter depends on it (v2, v3, v4; MHA_rotary and MHA_shift without time_out). Raises
    Mistake where a name or shape differs.
    """
    file = weights_file(path)
    tensors = _read(file)
    require_match(model, tensors, str(file))
    model.load_state_dict(tensors)


def stretch_time_vectors(model: LM, path: str | Path) -> None:
    """Fills the time_* vectors of `model` with those of a smaller trained model.

    Each vector is sorted and smoothed over its channels, then interpolated over channels and layers. Raises Mistake
    where the file has no such vectors.
    """
    file = weights_file(path)
    tensors = _read(file)
    for vector in sorted({_vector(name) for name, _ in model.named_parameters() if _vector(name)}):
        sources = [tensors[name] for name in sorted(tensors, key=_layer) if _vector(name) == vector]
        if not sources:
            raise UserError(f"model.time_vectors_from: {file} has no {vector}; version and token shift must agree")
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


def _vector(name: str) -> str:
    """`att.time_decay` for `blocks.3.att.time_decay`; empty for a parameter that is no time vector."""
    parts = name.split(".")
    return ".".join(parts[2:]) if parts[0] == "blocks" and parts[-1].startswith("time_") else ""


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else -1
