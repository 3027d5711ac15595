"""A model as one HTML file that runs it in any browser, with nothing loaded from anywhere.

The page has the weights in base64, the tokenizer, and the model once more in plain JavaScript (engine.js). Text in it
is untrusted: Jinja escapes it, and the page's security policy forbids loading and sending anything.
"""

import base64
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rwkv_lab.config.errors import UserError
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.models.blocks.channel_mix import ChannelMix
from rwkv_lab.models.blocks.wkv_mix import WKVMix
from rwkv_lab.models.factory import skeleton
from rwkv_lab.util.io import write_atomic
from rwkv_lab.util.units import count

if TYPE_CHECKING:
    from torch import Tensor

    from rwkv_lab.data import Tokenizer
    from rwkv_lab.models.lm import LM

FORMS = {"fp32": 4, "fp16": 2, "int8": 1}  # what matrices can be kept as, and the bytes of a weight; the rest is fp32
LONGEST = 500_000_000  # characters of one tensor, a little less than browsers allow a string


class Setting(NamedTuple):
    """A field of the page's form."""

    name: str
    label: str
    value: float
    low: float
    high: float | None
    step: str
    hint: str


SETTINGS = (
    Setting("length", "Length", 400, 1, None, "1", "most tokens to write"),
    Setting("temperature", "Temperature", 0.8, 0, None, "any", "above 1 wilder, below tamer; 0 always the likeliest"),
    Setting("top_k", "Top-k", 0, 0, None, "1", "keep the k most probable tokens; 0 keeps all"),
    Setting("top_p", "Top-p", 1, 0, 1, "any", "keep the most probable tokens up to this sum; 1 keeps all"),
    Setting("top_p_x", "Top-p-x", 0, 0, 1, "any", "beside those of top-p, all above this probability; try 0.01"),
    Setting("top_a", "Top-a", 0, 0, 1, "any", "drop tokens below this times the square of the largest; try 0.2"),
)


class Card(NamedTuple):
    """What the page tells of its model."""

    title: str
    facts: list[tuple[str, str]]
    bpb: Mapping[str, float]  # of the weights in each form; empty: not measured
    text: str  # what it was measured on, or how to have it measured
    prompt: str = ""


def save(model: "LM", tokenizer: "Tokenizer", form: str, card: Card, file: Path) -> None:
    """Write the page of a model with its matrices as ``form`` of ``FORMS``.

    Raises UserError for a model that is not RWKV v2 to v4, a weight outside fp16's range, or a tokenizer the page has
    no code for.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    described: dict[str, Any] = {"model": describe(model), "tokenizer": _tokenizer(tokenizer), "tensors": []}
    weights = []
    for name, value in model.state_dict().items():
        kept = _form_of(value, form)
        text = base64.b64encode(_bytes(name, value.detach().float(), kept)).decode()
        if len(text) > LONGEST:
            raise UserError(f"{name} is too large for a browser as {kept}: choose --weights fp16 or int8")
        described["tensors"].append({"name": name, "type": kept, "shape": list(value.shape)})
        weights.append(Markup(text))
    here = files("rwkv_lab.inference")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    content = environment.from_string(here.joinpath("page.html").read_text()).render(
        title=card.title,
        parameters=count(sum(parameter.numel() for parameter in model.parameters())),
        prompt=card.prompt,
        reads_text=described["tokenizer"]["kind"] != "ids",
        settings=SETTINGS,
        facts=card.facts,
        measured=card.text,
        forms=[_row(model, name, card.bpb.get(name), name == form) for name in FORMS],
        described=described,
        weights=weights,
        style=Markup(here.joinpath("page.css").read_text()),
        engine=Markup(here.joinpath("engine.js").read_text()),
        script=Markup(here.joinpath("page.js").read_text()),
    )
    write_atomic(file, content.encode())


def describe(model: "LM") -> dict[str, Any]:
    """Return what engine.js has to know of a model beside its tensors. Raises UserError for one it cannot run."""
    RecurrentModel(model)  # refuses what reads in both directions
    config = model.config
    if model.positions is not None:
        raise UserError("a page runs models of text: train without model.positions_2d=true")
    blocks = []
    for block in model.blocks:
        if not isinstance(block.att, (WKVMix, ChannelMix)) or not isinstance(block.ffn, ChannelMix):
            raise UserError(f"only rwkv_v2, rwkv_v3 and rwkv_v4 run in a page: this {config.name} has other blocks")
        blocks.append({"att": _mix(block.att), "ffn": _mix(block.ffn)})
    qk = model.head_qk
    return {
        "n_embd": config.n_embd,
        "vocab_size": model.vocab_size,
        "post_norm": config.norm == "post",
        "blocks": blocks,
        "head_qk": None if qk is None else {"dim": qk.dim, "window": qk.window, "form": qk.form},
    }


def _mix(mix: WKVMix | ChannelMix) -> dict[str, Any]:
    shift = mix.shift
    late = None if shift.learned else dict(zip(shift.roles, shift.n_shifted, strict=True))
    found: dict[str, Any] = {"kind": "channel", "late": late, "shared": shift.shared}
    if isinstance(mix, WKVMix):
        found |= {"kind": "wkv", "den_eps": mix.den_eps, "k_max": mix.k_max}
    return found


def rounded(model: "LM", form: str) -> "LM":
    """Return the model with the weights as the page computes with them."""
    tensors = {}
    for name, value in model.state_dict().items():
        kept, value = _form_of(value, form), value.detach().float()
        if kept == "fp16":
            value = _half(name, value).float()
        elif kept == "int8":
            scale, steps = _steps(value)
            value = scale.unsqueeze(1) * steps
        tensors[name] = value
    found = skeleton(model.config, model.vocab_size)
    found.load_state_dict(tensors, assign=True)
    return found


def _form_of(value: "Tensor", form: str) -> str:
    return form if value.ndim == 2 else "fp32"


def _bytes(name: str, value: "Tensor", form: str) -> bytes:
    if form == "fp32":
        return value.numpy().astype("<f4").tobytes()
    if form == "fp16":
        return _half(name, value).numpy().astype("<f2").tobytes()
    scale, steps = _steps(value)
    return scale.numpy().astype("<f4").tobytes() + steps.to(torch.int8).numpy().tobytes()


def _half(name: str, value: "Tensor") -> "Tensor":
    half = value.half()
    if not bool(half.isfinite().all()):
        raise UserError(f"{name} has weights up to {float(value.abs().max()):.3g}, outside fp16: choose --weights int8")
    return half


def _steps(value: "Tensor") -> "tuple[Tensor, Tensor]":
    """Return the scale of each row [N] and whole numbers from -127 to 127 [N,M], whose product is about ``value``."""
    scale = value.abs().amax(1) / 127
    scale[scale == 0] = 1.0
    return scale, (value / scale.unsqueeze(1)).round()


def _tokenizer(tokenizer: "Tokenizer") -> dict[str, Any]:
    """Return the tokenizer as it is stored; UserError for one that engine.js has no code for."""
    stored: dict[str, Any] = json.loads(tokenizer.to_json())
    if stored["kind"] in ("char", "byte", "ids"):
        return stored
    if stored["kind"] != "bpe":
        raise UserError(f"the page has no code for a tokenizer of kind {stored['kind']}: only char, byte, bpe and ids")
    content = stored["tokenizer"]
    model, decoder = content["model"], (content.get("decoder") or {}).get("type")
    splitter = content.get("pre_tokenizer")
    plain: dict[str, Any] = {"type": "BPE", "dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    plain |= {"byte_fallback": False}
    faults = [f"model.{key}={model[key]}" for key, value in plain.items() if model.get(key, value) not in (value, None)]
    if splitter is not None and splitter["type"] != "ByteLevel":
        faults.append(f"pre_tokenizer {splitter['type']}")
    if (content.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        faults.append(f"normalizer {content['normalizer']['type']}")
    if decoder != ("ByteLevel" if splitter is not None else "Fuse"):
        faults.append(f"decoder {decoder}")
    for added in content.get("added_tokens", []):
        faults += [f"{key} of {added['content']}" for key in ("single_word", "lstrip", "rstrip") if added.get(key)]
    if faults:
        raise UserError(f"the page has no code for this tokenizer.json: it has {faults[0]}; byte-level BPE would do")
    used = ("model", "pre_tokenizer", "normalizer", "added_tokens")
    return {"kind": "bpe", "tokenizer": {key: content.get(key) for key in used if content.get(key) is not None}}


def _row(model: "LM", form: str, bpb: float | None, here: bool) -> dict[str, Any]:
    size = 0
    for value in model.state_dict().values():
        kept = _form_of(value, form)
        size += FORMS[kept] * value.numel() + (4 * value.shape[0] if kept == "int8" else 0)
    shown = "not measured" if bpb is None else f"{bpb:.4f}"
    return {"name": form, "here": here, "size": f"{size / 1e6:.2f} MB", "bpb": shown}
