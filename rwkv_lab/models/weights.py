"""Weights on disk: which file a name means, its tensors under our names, and whether they are those of a model."""

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from rwkv_lab.config.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from rwkv_lab.models.lm import LM

WEIGHTS = "model.safetensors"
METADATA_KEY = "rwkv_lab.model"  # of the description of its model in a file that rwkv_lab wrote
PICKLED = (".pth", ".pt", ".bin", ".ckpt")  # endings of files that torch.save writes
IN_FOLDER = (WEIGHTS, "pytorch_model.bin")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # keys under which trainers keep the parameters
PREFIXES = ("_forward_module.", "_orig_mod.", "module.", "model.")  # what they put before every name
PER_POSITION = ("time_w", "time_alpha", "time_beta", "time_gamma", "time_out")


def weights_file(text: str | Path, key: str | None = None, runs_dir: str | None = None) -> Path:
    """Return the file of weights that ``text`` names: a file, a folder's, or that of a run by STUDY/NAME, name or id.

    Raises UserError that begins with ``key``, if given.
    """
    path, prefix = Path(text).expanduser(), f"{key}={text}: " if key else ""
    if path.is_dir() and (found := [path / name for name in IN_FOLDER if (path / name).is_file()]):
        path = found[0]
    elif not path.is_file():
        path = _run_folder(str(text), prefix, runs_dir) / WEIGHTS
        if not path.is_file():
            raise UserError(f"{prefix}{path} does not exist: a run writes it when it completes")
    if path.suffix not in (".safetensors", *PICKLED):
        raise UserError(
            f"{prefix}{path} is not a file of weights: give a run, a Hugging Face folder, or a file that ends in "
            f".safetensors, {', '.join(PICKLED[:-1])} or {PICKLED[-1]}"
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
            raise UserError(f"{prefix}{text} {reason}: give a run or a file of weights") from None
        raise UserError(f"{prefix}{error}") from None


def read_tensors(file: Path) -> "dict[str, Tensor]":
    """Return the tensors of a file on the CPU, by the names they have there but for prefixes of a trainer's wrapper.

    Raises UserError for one that is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix in PICKLED:
        return read_checkpoint(file)
    try:
        return unprefixed(load_file(file))
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable .safetensors file: {error}") from error


def read_description(file: Path) -> str | None:
    """Return the description of its model that rwkv_lab wrote into a file of weights; None in any other file."""
    from safetensors import SafetensorError, safe_open

    if file.suffix in PICKLED:
        return None
    try:
        with safe_open(file, "pt") as opened:
            return (opened.metadata() or {}).get(METADATA_KEY)
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable .safetensors file: {error}") from error


def read_ours(file: Path) -> "dict[str, Tensor]":
    """Return the tensors of a file of any program under our names and shapes, for a model of any configuration."""
    from rwkv_lab.models.weights import our_names

    tensors = read_tensors(file)
    return tensors if read_description(file) is not None else our_names(tensors)


def read_checkpoint(path: str | Path) -> "dict[str, Tensor]":
    """Return the tensors of a file that torch.save wrote, on the CPU; nothing in it is executed.

    A checkpoint of a trainer may have them below ``state_dict`` or the like. Raises UserError for any other file.
    """
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnpicklingError:
        raise UserError(f"{path} is not a checkpoint of plain tensors: nothing in it was executed") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or ["unreadable"]
        raise UserError(f"{path} is not a checkpoint of plain tensors ({reason[0][:120]})") from None
    while isinstance(content, dict) and (inner := [key for key in WRAPPERS if isinstance(content.get(key), dict)]):
        content = content[inner[0]]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} is not a checkpoint of plain tensors: it must be a dict of names and tensors")
    return unprefixed(content)


def unprefixed(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return ``tensors`` without the prefixes that all of their names share because a wrapper put them there."""
    found: dict[str, Any] = dict(tensors)
    while shared := [prefix for prefix in PREFIXES if found and all(name.startswith(prefix) for name in found)]:
        found = {name.removeprefix(shared[0]): value for name, value in found.items()}
    return found


def require_numbers(tensors: "Mapping[str, Tensor]", source: str | Path) -> None:
    """Raise UserError that names the tensors of ``source`` with NaN in them, if there are any."""
    bad = [name for name, value in tensors.items() if value.is_floating_point() and bool(value.isnan().any())]
    if bad:
        more = f" and {len(bad) - 3} more tensors" if len(bad) > 3 else ""
        raise UserError(
            f"{source} has NaN in {', '.join(bad[:3])}{more}: its training diverged, or the file is damaged"
        )


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors under our names, from the header alone of a file that rwkv_lab wrote."""
    from safetensors import safe_open

    if read_description(file) is None:
        return {name: tuple(value.shape) for name, value in read_ours(file).items()}
    with safe_open(file, "pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


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


# Buffers that the original kept in its checkpoints beside parameters.
BUFFERS = re.compile(r"(^|\.)(mask|copy_mask|inv_freq)$")
Renames = tuple[tuple[str, str], ...]

# From the names of RwkvForCausalLM (transformers) to those of the original v4, applied in order.
FROM_HUGGING_FACE: Renames = (
    (r"^rwkv\.", ""),
    (r"^embeddings\.", "emb."),
    (r"^blocks\.0\.pre_ln\.", "blocks.0.ln0."),
    (r"\.attention\.", ".att."),
    (r"\.feed_forward\.", ".ffn."),
    (r"\.time_mix_key$", ".time_mix_k"),
    (r"\.time_mix_value$", ".time_mix_v"),
    (r"\.time_mix_receptance$", ".time_mix_r"),
)
TO_HUGGING_FACE: Renames = (
    (r"^emb\.", "embeddings."),
    (r"\.ln0\.", ".pre_ln."),
    (r"\.att\.", ".attention."),
    (r"\.ffn\.", ".feed_forward."),
    (r"\.time_mix_k$", ".time_mix_key"),
    (r"\.time_mix_v$", ".time_mix_value"),
    (r"\.time_mix_r$", ".time_mix_receptance"),
    (r"^(?!head\.)", "rwkv."),
)
# From the original's names, of every version, to ours.
FROM_ORIGINAL: Renames = (
    (r"^tok_emb\.", "emb."),
    (r"^ln_f\.", "ln_out."),
    (r"^head_(q|k)\.", r"head_qk.\1."),
    (r"^blocks\.0\.ffnPre\.", "blocks.0.att."),
    (r"\.attn\.", ".att."),
    (r"\.mlp\.weight\.", ".ffn.output."),
    (r"\.mlp\.", ".ffn."),
    (r"\.head_mix\.weight$", ".head_mix"),
    (r"(?<!\.shift)\.time_mix", ".shift.time_mix"),
)
VECTOR = re.compile(r"\.time_(mix(_[kvr])?|decay|first)$")  # [C] for us, [1,1,C] or [C,1] there


def renamed(name: str, renames: Renames) -> str:
    """Return ``name`` after all replacements."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def is_hugging_face(names: Mapping[str, object]) -> bool:
    """Return whether these are names of transformers' RwkvForCausalLM."""
    return "rwkv.embeddings.weight" in names


def original_names(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return a checkpoint by the original's names: itself without buffers, or renamed from transformers' names.

    A head tied to the embedding, which such a checkpoint lacks, becomes a copy of it.
    """
    if not is_hugging_face(tensors):
        return {name: value for name, value in tensors.items() if not BUFFERS.search(name)}
    found = {renamed(name, FROM_HUGGING_FACE): value for name, value in tensors.items()}
    return {"head.weight": found["emb.weight"]} | found


def our_names(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return a checkpoint of the original or of transformers by our names and with our shapes."""
    found = {renamed(name, FROM_ORIGINAL): value for name, value in original_names(tensors).items()}
    return {name: value.flatten() if VECTOR.search(name) else value for name, value in found.items()}
