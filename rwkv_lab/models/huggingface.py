"""RWKV v4 as folders of Hugging Face's transformers (class RwkvForCausalLM), in and out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.models.rwkv_lm_format import original_of, to_original
from rwkv_lab.models.weights import IN_FOLDER, TO_HUGGING_FACE, WEIGHTS, renamed
from rwkv_lab.models.weights import read_tensors as read_file
from rwkv_lab.util.io import write_json
from rwkv_lab.util.tensorfile import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from rwkv_lab.data import Tokenizer
    from rwkv_lab.models.lm import LM

CONFIG = "config.json"
LAYER_NORM_EPSILON = 1e-5


def is_folder(folder: Path) -> bool:
    """Return whether ``folder`` has the config.json of a Hugging Face model."""
    return (folder / CONFIG).is_file() and not (folder / "run.json").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings of a model folder; UserError for any model but plain RWKV v4."""
    file = folder / CONFIG
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        kind = found.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not readable settings of a model: {error}") from None
    if kind != "rwkv":
        raise UserError(f"{file} has model_type={kind}: only rwkv, the class RwkvForCausalLM, can be read")
    width = found.get("hidden_size")
    plain = {
        "attention_hidden_size": width,
        "intermediate_size": width and 4 * width,
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
    }
    for key, value in plain.items():
        if found.get(key) not in (None, value):
            raise UserError(f"{file} has {key}={found[key]}: only {value} can be read")
    return found


def read_tensors(folder: Path) -> "dict[str, Tensor]":
    """Return the tensors of a model folder, of one file or of the shards that its index lists."""
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = _shards(index)
            return {key: value for shard in shards for key, value in read_file(shard).items()}
    raise UserError(f"{folder} has a config.json, but no {' and no '.join(IN_FOLDER)}")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is damaged: it must map names of tensors to files") from None
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index.parent} lacks {missing[0]}, which its index names")
    return [index.parent / name for name in names]


def to_hugging_face(model: "LM") -> "dict[str, Tensor]":
    """Return the parameters of a plain RWKV v4 under the names of RwkvForCausalLM; exactly invertible.

    Raises UserError for any other model: that class has no tricks.
    """
    original = original_of(model)
    if (original.version, original.model_type) != ("v4", "RWKV"):
        raise UserError(f"{model.config.name} has no class in transformers: only rwkv_v4 without tricks can be written")
    tensors = to_original(model)
    if trick := _trick(set(tensors), model.config.n_layer):
        raise UserError(
            f"transformers' RwkvForCausalLM is rwkv_v4 without tricks, but this model {trick}: train one without "
            "head-QK, ffn_pre and post-norm, with the norm after the embedding and model.token_shift=learned"
        )
    return {renamed(name, TO_HUGGING_FACE): value.contiguous() for name, value in tensors.items()}


def _trick(names: set[str], n_layer: int) -> str | None:
    """Return what distinguishes a v4 of these original names from the plain one; None for the plain one."""
    mixes = [f"att.time_mix_{role}" for role in "kvr"] + [f"ffn.time_mix_{role}" for role in "kr"]
    matrices = [f"att.{part}.weight" for part in ("key", "value", "receptance", "output")]
    matrices += [f"ffn.{part}.weight" for part in ("key", "value", "receptance")]
    norms = [f"{norm}.{part}" for norm in ("ln1", "ln2") for part in ("weight", "bias")]
    inside = [*mixes, *matrices, *norms, "att.time_decay", "att.time_first"]
    plain = {f"blocks.{layer}.{name}" for layer in range(n_layer) for name in inside}
    plain |= {"emb.weight", "head.weight"} | {
        f"{norm}.{part}" for norm in ("ln_out", "blocks.0.ln0") for part in ("weight", "bias")
    }
    if lacking := sorted(plain - names):
        return f"lacks {lacking[0]}"
    return f"has {min(names - plain)}" if names - plain else None


def save(model: "LM", tokenizer: "Tokenizer | None", folder: Path) -> list[str]:
    """Write ``model`` and ``tokenizer`` as a folder that transformers' Auto classes load; return its file names.

    A tokenizer that has no form there, such as plain token ids, is left out. Raises UserError as ``to_hugging_face``,
    and OSError if the folder cannot be written.
    """
    tensors = to_hugging_face(model)
    folder.mkdir(exist_ok=True)
    width, dtype = model.config.n_embd, str(model.emb.weight.dtype).removeprefix("torch.")
    settings = {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "vocab_size": model.vocab_size,
        "context_length": model.config.ctx_len,
        "hidden_size": width,
        "num_hidden_layers": model.config.n_layer,
        "attention_hidden_size": width,
        "intermediate_size": 4 * width,
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "rescale_every": 0,  # halves the activations of deep models in fp16
        "tie_word_embeddings": False,
        "use_cache": True,
        # No token ends a text; the class would otherwise take token 0.
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": dtype,
    }
    write_json(folder / CONFIG, settings)
    write_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    written = [CONFIG, WEIGHTS]
    described = getattr(tokenizer, "hugging_face", None)
    if described is not None and (content := described()) is not None:
        write_json(folder / "tokenizer.json", content)
        token = content["model"].get("unk_token")
        write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
            | ({"unk_token": token} if token else {}),
        )
        written += ["tokenizer.json", "tokenizer_config.json"]
    return written
