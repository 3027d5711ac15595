"""Models from and to checkpoints of the original implementation (Peng 2021-2023, RWKV-LM)."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.models.factory import configure, skeleton
from rwkv_lab.models.lm import LM
from rwkv_lab.models.weights import BUFFERS

FFN_PRE = ("blocks.0.att.", "blocks.0.ffnPre.")  # a channel mix in the place of the first time mix


class Original(NamedTuple):
    """How the original implementation names and shapes the parameters of one of its models."""

    version: str  # v1 | v2 | v3 | v4
    model_type: str  # RWKV | MHA_rotary | MHA_shift | MHA_pro
    renames: tuple[tuple[str, str], ...]  # patterns and replacements from our names to theirs, applied in order
    shapes: Mapping[str, tuple[int, ...]]  # their shape by the end of their name, -1 for the length; others are as ours
    hidden: tuple[int, int] | None = None  # hidden width of the channel mix as a fraction of n_ffn; None: no n_ffn

    def name(self, ours: str) -> str:
        """Return their name of our parameter."""
        for pattern, replacement in self.renames:
            ours = re.sub(pattern, replacement, ours)
        return ours

    def shape(self, theirs: str, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Return their shape of the parameter they call ``theirs``, from our shape; -1 stands for the length."""
        return next((shape for end, shape in self.shapes.items() if theirs.endswith(end)), ours)


_HEAD_QK = (r"^head_qk\.(q|k)\.", r"head_\1.")

SCAN_RENAMES = (_HEAD_QK, (r"\.shift\.time_mix", ".time_mix"))
SCAN_SHAPES: Mapping[str, tuple[int, ...]] = {f".time_mix{role}": (1, 1, -1) for role in ("", "_k", "_v", "_r")}
COLUMN_SHAPES: Mapping[str, tuple[int, ...]] = {**SCAN_SHAPES, "time_decay": (-1, 1), "time_first": (-1, 1)}

HEADS_RENAMES = (
    _HEAD_QK,
    (r"^emb\.", "tok_emb."),
    (r"^ln_out\.", "ln_f."),
    (r"\.att\.", ".attn."),
    (r"\.ffn\.output\.", ".mlp.weight."),
    (r"\.ffn\.", ".mlp."),
    (r"\.head_mix$", ".head_mix.weight"),
)


def architecture(version: str, model_type: str) -> tuple[str, Original]:
    """Return our name of the original's model, and how it names things; UserError for one that never existed."""
    plain = model_type.removesuffix("-ffnPre")
    for name, owner in registry.members("model").items():
        original = owner().original()
        known = original is not None and (original.version, original.model_type) == (version, plain)
        if known and (plain == model_type or version != "v1"):
            return name, original
    raise UserError(
        f"the original has no {version} model of type {model_type!r}; v1 has RWKV, MHA_rotary, MHA_shift and MHA_pro, "
        "v2, v3 and v4 have RWKV and RWKV-ffnPre"
    )


def detected(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return version and model type of a checkpoint by the original's names.

    Raises UserError for MHA_rotary and MHA_shift, whose tensors look alike, and for names the original never wrote.
    """
    if "tok_emb.weight" in tensors:
        if "blocks.0.attn.time_w" not in tensors:
            raise UserError(
                "the tensors are those of MHA_rotary or of MHA_shift, which look alike: convert them first, e.g. "
                "rwkv-lab convert x.pth x.safetensors --version v1 --model-type MHA_rotary --n-head 8"
            )
        return "v1", "MHA_pro" if "blocks.0.attn.head_mix.weight" in tensors else "RWKV"
    decay = next((value for name, value in tensors.items() if name.endswith(".att.time_decay")), None)
    if "emb.weight" not in tensors or decay is None:
        raise UserError(
            "its tensors are not those of a model known here: RWKV v1 to v4 by the names of the original or of "
            "transformers' RwkvForCausalLM, or a file that rwkv_lab wrote"
        )
    model_type = "RWKV-ffnPre" if any(name.startswith("blocks.0.ffnPre.") for name in tensors) else "RWKV"
    if decay.dim() == 1:
        return "v4", model_type
    return "v3" if any(name.endswith(".time_mix_k") for name in tensors) else "v2", model_type


def load_original(state_dict: Mapping[str, Tensor], version: str, model_type: str = "RWKV", **sizes: Any) -> LM:
    """Return the model of an original checkpoint, in the checkpoint's own floating types, on the CPU.

    version    v1 | v2 | v3 | v4
    model_type RWKV | MHA_rotary | MHA_shift | MHA_pro (v1), RWKV | RWKV-ffnPre (v2, v3, v4)
    sizes      vocab_size and fields of the model's configuration. Sizes that the tensors show may be left out; n_head
               of MHA_rotary and MHA_shift must be given, and ctx_len of v2, v3 and v4 defaults to 1024 (head-QK looks
               back that far). Sizes that only other models have are ignored.

    Buffers of the original are ignored. Raises UserError if tensors are missing, superfluous or contradict ``sizes``.
    """
    name, original = architecture(version, model_type)
    tensors = {key: value for key, value in state_dict.items() if not BUFFERS.search(key)}
    shown = _shown_sizes(tensors, original, model_type)
    members = registry.members("model")
    own = {field.name for field in dataclasses.fields(members[name])} | {"vocab_size"}
    known = own.union(*({field.name for field in dataclasses.fields(owner)} for owner in members.values()))
    for key, value in sizes.items():
        if key not in known:
            raise UserError(f"{key} is not a size of a model: choose among {', '.join(sorted(known))}")
        if key in shown and shown[key] != value:
            raise UserError(f"{key} is given as {value}, but the tensors show {shown[key]}")
    fields = {"ctx_len": 1024} | {key: value for key, value in sizes.items() if key in own} | shown
    if "n_head" in own and "n_head" not in fields:
        raise UserError(f"n_head must be given: the tensors of {model_type} do not show how many heads there are")
    vocab_size = fields.pop("vocab_size")
    model = skeleton(configure(name, **fields), vocab_size)
    return _filled(model, tensors)


def _filled(model: LM, tensors: dict[str, Tensor]) -> LM:
    """Return the meta-device ``model`` with ``tensors``, of the original's names and shapes, as parameters."""
    ours = {original_name(model, name): (name, parameter) for name, parameter in model.named_parameters()}
    for theirs in ours.keys() ^ tensors.keys():
        if theirs in ours:
            raise UserError(f"the checkpoint has no {theirs}, which {model.config.name} needs")
        raise UserError(f"the checkpoint has {theirs}, which {model.config.name} lacks")
    renamed = {}
    for theirs, (name, parameter) in ours.items():
        tensor = tensors[theirs]
        if tensor.numel() != parameter.numel():
            raise UserError(f"{theirs} is {list(tensor.shape)}, which does not fit {list(parameter.shape)} of {name}")
        renamed[name] = tensor.detach().to("cpu").reshape(parameter.shape).clone()
    model.load_state_dict(renamed, assign=True)
    return model.requires_grad_(True)


def _shown_sizes(tensors: Mapping[str, Tensor], original: Original, model_type: str) -> dict[str, Any]:
    """Return the fields of the configuration that names and shapes of an original checkpoint show."""
    embedding = original.name("emb.weight")
    layers = {int(match[1]) for match in (re.match(r"blocks\.(\d+)\.", key) for key in tensors) if match}
    if embedding not in tensors or not layers:
        raise UserError(f"the checkpoint has no {embedding} or no blocks.*: it belongs to another version")
    vocab_size, n_embd = tensors[embedding].shape
    head_q = tensors.get("head_q.weight")
    shown: dict[str, Any] = {
        "vocab_size": vocab_size,
        "n_embd": n_embd,
        "n_layer": max(layers) + 1,
        "head_qk_dim": 0 if head_q is None else head_q.shape[0],
    }
    if original.hidden is None:
        return shown | {"ffn_pre": model_type.endswith("-ffnPre")}
    return shown | _shown_by_heads(tensors, original.hidden)


def _shown_by_heads(tensors: Mapping[str, Tensor], hidden: tuple[int, int]) -> dict[str, Any]:
    """Return what v1 and its attention models show beyond that; the channel mix is ``hidden`` times n_ffn wide."""
    shown: dict[str, Any] = {"time_out": "time_out" in tensors}
    if (key := tensors.get("blocks.0.attn.key.weight")) is not None:
        shown["n_attn"] = key.shape[0]
    if (key := tensors.get("blocks.0.mlp.key.weight")) is not None:
        shown["n_ffn"] = math.ceil(key.shape[0] * hidden[1] / hidden[0])
    if (curve := tensors.get("blocks.0.attn.time_w")) is not None:
        shown["n_head"], shown["ctx_len"] = curve.shape
    elif shown["time_out"]:
        shown["ctx_len"] = tensors["time_out"].shape[1]
    if (tiny := tensors.get("blocks.0.attn.tiny_att.qkv.weight")) is not None:
        shown["tiny_attention"] = tiny.shape[0] // 3
    return shown


def original_of(model: LM) -> Original:
    """Return the names of the model's counterpart; UserError if the original implementation has none."""
    original = model.config.original()
    if original is None:
        raise UserError(f"{model.config.name} does not come from the original implementation")
    if model.config.bidirectional:
        raise UserError("the original implementation has no model that reads in both directions")
    if model.config.positions_2d:
        raise UserError("the original implementation has no places of pixels: train without model.positions_2d=true")
    return original


def original_name(model: LM, ours: str) -> str:
    """Return the original's name of our parameter ``ours``."""
    name = original_of(model).name(ours)
    return name.replace(*FFN_PRE) if getattr(model.config, "ffn_pre", False) else name


def to_original(model: LM, grads: bool = False) -> dict[str, Tensor]:
    """Return the model's parameters under the original's names and shapes, in their own type; exactly invertible.

    With ``grads`` the gradients instead, 0 where a backward pass reached none. Raises UserError before any backward
    pass.
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
