"""Models from and to checkpoints of the original implementation (Peng 2021-2023, RWKV-LM)."""

import dataclasses
import math
import re
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from rwkv_lab.config.errors import UserError
from rwkv_lab.models.config import HeadsConfig
from rwkv_lab.models.factory import configure, skeleton
from rwkv_lab.models.lm import LM
from rwkv_lab.models.reference_names import Original
from rwkv_lab.models.registry import MODELS

# what the original kept in its checkpoints beside parameters
BUFFERS = re.compile(r"(^|\.)(mask|copy_mask|inv_freq)$")
FFN_PRE = ("blocks.0.att.", "blocks.0.ffnPre.")  # a channel mix in the place of the first time mix


def architecture(version: str, model_type: str) -> str:
    """Our name of the original's model. Raises Mistake for a version and type that never existed."""
    plain = model_type.removesuffix("-ffnPre")
    for name, entry in MODELS.items():
        original = getattr(import_module(entry.target), "ORIGINAL", None)
        known = original is not None and (original.version, original.model_type) == (version, plain)
        if known and (plain == model_type or version != "v1"):
            return name
    raise UserError(
        f"the original has no {version} model of type {model_type!r}; v1 has RWKV, MHA_rotary, MHA_shift and MHA_pro, "
        "v2, v3 and v4 have RWKV and RWKV-ffnPre"
    )


def load_original(state_dict: Mapping[str, Tensor], version: str, model_type: str = "RWKV", **sizes: Any) -> LM:
    """The model of an original checkpoint, in the checkpoint's own floating types, on the CPU.

    version    v1 | v2 | v3 | v4
    model_type RWKV | MHA_rotary | MHA_shift | MHA_pro (v1), RWKV | RWKV-ffnPre (v2, v3, v4)
    sizes      vocab_size and fields of the model's configuration. Those the tensors show need not be given, only n_head
               of MHA_rotary and MHA_shift, ctx_len of v2, v3 and v4 (1024; head-QK looks back that far) and what is no
               size, such as l2_wrap (on for v4). Sizes another version has are ignored.

    Buffers of the original are ignored. Raises Mistake where tensors are missing, superfluous or contradict `sizes`.
    """
    name = architecture(version, model_type)
    tensors = {key: value for key, value in state_dict.items() if not BUFFERS.search(key)}
    shown = _shown_sizes(tensors, name, model_type)
    known = {field.name for family in MODELS.values() for field in dataclasses.fields(family.config)} | {"vocab_size"}
    own = {field.name for field in dataclasses.fields(MODELS[name].config)} | {"vocab_size"}
    for key, value in sizes.items():
        if key not in known:
            raise UserError(f"{key} is no size of a model; known are {', '.join(sorted(known))}")
        if key in shown and shown[key] != value:
            raise UserError(f"{key} is given as {value}, but the tensors show {shown[key]}")
    fields = {"ctx_len": 1024} | {key: value for key, value in sizes.items() if key in own} | shown
    if issubclass(MODELS[name].config, HeadsConfig) and "n_head" not in fields:
        raise UserError(f"n_head must be given: the tensors of {model_type} do not show how many heads there are")
    vocab_size = fields.pop("vocab_size")
    model = skeleton(configure(name, **fields), vocab_size)
    return _filled(model, tensors)


def _filled(model: LM, tensors: dict[str, Tensor]) -> LM:
    """The meta-device `model` with `tensors`, which have the original's names and shapes, as parameters."""
    ours = {original_name(model, name): (name, parameter) for name, parameter in model.named_parameters()}
    for theirs in ours.keys() ^ tensors.keys():
        if theirs in ours:
            raise UserError(f"the checkpoint has no {theirs}, which {model.config.name} needs")
        raise UserError(f"the checkpoint has {theirs}, which {model.config.name} does not know")
    renamed = {}
    for theirs, (name, parameter) in ours.items():
        tensor = tensors[theirs]
        if tensor.numel() != parameter.numel():
            raise UserError(f"{theirs} is {list(tensor.shape)}, which does not fit {list(parameter.shape)} of {name}")
        renamed[name] = tensor.detach().to("cpu").reshape(parameter.shape).clone()
    model.load_state_dict(renamed, assign=True)
    return model.requires_grad_(True)


def _shown_sizes(tensors: Mapping[str, Tensor], name: str, model_type: str) -> dict[str, Any]:
    """The fields of the configuration that names and shapes of an original checkpoint tell."""
    heads_family = issubclass(MODELS[name].config, HeadsConfig)
    embedding = "tok_emb.weight" if heads_family else "emb.weight"
    layers = {int(match[1]) for match in (re.match(r"blocks\.(\d+)\.", key) for key in tensors) if match}
    if embedding not in tensors or not layers:
        raise UserError(f"the checkpoint has no {embedding} or no blocks.*: it is not one of this version")
    vocab_size, n_embd = tensors[embedding].shape
    head_q = tensors.get("head_q.weight")
    shown: dict[str, Any] = {
        "vocab_size": vocab_size,
        "n_embd": n_embd,
        "n_layer": max(layers) + 1,
        "head_qk_dim": 0 if head_q is None else head_q.shape[0],
    }
    if not heads_family:
        return shown | {"ffn_pre": model_type.endswith("-ffnPre")}
    return shown | _shown_by_heads(tensors, gated=name in ("rwkv_v1", "mha_pro"))


def _shown_by_heads(tensors: Mapping[str, Tensor], gated: bool) -> dict[str, Any]:
    """What v1 and its attention models show beyond that; gated: the channel mix is 5/2 n_ffn wide, else 3 n_ffn."""
    shown: dict[str, Any] = {"time_out": "time_out" in tensors}
    if (key := tensors.get("blocks.0.attn.key.weight")) is not None:
        shown["n_attn"] = key.shape[0]
    if (hidden := tensors.get("blocks.0.mlp.key.weight")) is not None:
        shown["n_ffn"] = math.ceil(hidden.shape[0] * 2 / 5) if gated else hidden.shape[0] // 3
    if (curve := tensors.get("blocks.0.attn.time_w")) is not None:
        shown["n_head"], shown["ctx_len"] = curve.shape
    elif shown["time_out"]:
        shown["ctx_len"] = tensors["time_out"].shape[1]
    if (tiny := tensors.get("blocks.0.attn.tiny_att.qkv.weight")) is not None:
        shown["tiny_attention"] = tiny.shape[0] // 3
    return shown


def original_of(model: LM) -> Original:
    """The counterpart of the model. Raises Mistake for an architecture that is not from the original implementation."""
    original = getattr(import_module(MODELS[model.config.name].target), "ORIGINAL", None)
    if original is None:
        raise UserError(f"{model.config.name} does not come from the original implementation")
    return original


def original_name(model: LM, ours: str) -> str:
    """The original's name of our parameter `ours`."""
    name = original_of(model).name(ours)
    return name.replace(*FFN_PRE) if getattr(model.config, "ffn_pre", False) else name


def to_original(model: LM, grads: bool = False) -> dict[str, Tensor]:
    """The model's parameters under the original's names and shapes, in the model's own type; exactly invertible.

    With grads the gradients instead, 0 where a backward pass reached none. Raises Mistake before any backward pass.
    """
    original = original_of(model)
    if grads and all(parameter.grad is None for parameter in model.parameters()):
        raise UserError("the model has no gradients yet: call loss(...).backward() first")
    found = {}
    for ours, parameter in model.named_parameters():
        theirs = original_name(model, ours)
        value = parameter.detach()
        if grads:
            value = torch.zeros_like(value) if parameter.grad is None else parameter.grad
        found[theirs] = value.reshape(original.shape(theirs, tuple(value.shape))).clone()
    return found


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an original .pth file; nothing in it is executed. Raises Mistake for any other file."""
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnpicklingError:
        raise UserError(f"{path}: not a checkpoint of plain tensors; what else is in it is not executed") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or ["unreadable"]
        raise UserError(f"{path}: not a checkpoint of plain tensors ({reason[0][:120]})") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: not a checkpoint of plain tensors; it must be a dict of names and tensors")
    return content
