"""Weights on disk: which file a name means, its tensors, and whether they are those of a model."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_lab.config.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from rwkv_lab.models.lm import LM

WEIGHTS = "model.safetensors"
PER_POSITION = ("time_w", "time_alpha", "time_beta", "time_gamma", "time_out")


def weights_file(text: str | Path, key: str | None = None, runs_dir: str | None = None) -> Path:
    """Return the .safetensors file that ``text`` names: a file, a folder's, or that of a run by STUDY/NAME, name or id.

    Raises UserError that begins with ``key``, if given.
    """
    path, prefix = Path(text).expanduser(), f"{key}={text}: " if key else ""
    if path.is_dir() and (path / WEIGHTS).is_file():
        path = path / WEIGHTS
    elif not path.is_file():
        path = _run_folder(str(text), prefix, runs_dir) / WEIGHTS
        if not path.is_file():
            raise UserError(f"{prefix}{path} does not exist: a run writes it when it completes")
    if path.suffix != ".safetensors":
        raise UserError(
            f"{prefix}{path} is not a .safetensors file: python -m rwkv_lab.convert makes one of an original checkpoint"
        )
    return path


def _run_folder(text: str, prefix: str, runs_dir: str | None) -> Path:
    from rwkv_lab.runs.store import select
    from rwkv_lab.util import paths

    try:
        return select(text, paths.runs_dir(runs_dir)).path
    except UserError as error:
        if Path(text).suffix or Path(text).is_dir():
            reason = "has no model.safetensors" if Path(text).is_dir() else "does not exist"
            raise UserError(f"{prefix}{text} {reason}: give a run or a .safetensors file") from None
        raise UserError(f"{prefix}{error}") from None


def read_tensors(file: Path) -> "dict[str, Tensor]":
    """Return the tensors of a .safetensors file on the CPU. Raises UserError for one that is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable .safetensors file: {error}") from error


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a .safetensors file, from its header alone. Raises UserError for one that is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable .safetensors file: {error}") from error


def require_match(
    model: "LM", shapes: Mapping[str, tuple[int, ...]], source: Path, apart_from: Collection[str] = ()
) -> None:
    """Raise UserError unless ``shapes`` are those of the model's parameters, but for the names ``apart_from``."""
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in sorted((own.keys() | shapes.keys()) - set(apart_from)):
        if own.get(name) != shapes.get(name):
            raise UserError(
                f"{source}: {name} is {_shown(shapes.get(name))} there and {_shown(own.get(name))} in this "
                f"{model.config.name}; vocabulary, sizes and tricks must agree"
                + (" (and ctx_len, which this parameter depends on)" if name.endswith(PER_POSITION) else "")
            )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
