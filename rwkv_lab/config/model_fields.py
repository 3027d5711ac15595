"""Fields of a model that need more than a bound: shares of the token shift, and the pictures of positions_2d."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting

if TYPE_CHECKING:
    from rwkv_lab.config.kinds import ModelConfig

TXT_FIRST, IMG_FIRST, TXT, IMG = range(4)  # signs of data=images, token ids behind those of the pixels

ShiftKind = Literal["none", "half", "learned", "share", "roles", "ramp"]


@dataclass
class RoleShares:
    """Shares of channels that come from the previous token, by what the mixed input is for."""

    q: float | None = setting(None, low=0, high=1)  # query
    k: float | None = setting(None, low=0, high=1)  # key
    v: float | None = setting(None, low=0, high=1)  # value
    r: float | None = setting(None, low=0, high=1)  # receptance


class Shift(NamedTuple):
    """The token shift of one sublayer: which share of channels comes from the previous token."""

    learned: bool  # a share per channel is learned, beginning at those below if ``own_start``
    share: float = 0.5
    shares: Mapping[str, float] = MappingProxyType({})  # of the roles that differ from ``share``
    own_start: bool = False  # the shares were given, in place of the start of the model's recipe

    @classmethod
    def named(cls, kind: str) -> "Shift":
        """Return the shift of a word that needs no numbers; UserError for others."""
        if kind not in ("none", "half", "learned"):
            raise UserError(f"model.token_shift={kind} needs shares: build the sublayer with self.shift(layer)")
        return cls(kind == "learned", 0.0 if kind == "none" else 0.5)


def shift_of(model: "ModelConfig", layer: int) -> Shift:
    """Return the token shift of block ``layer`` of ``model``."""
    if model.token_shift in ("none", "half"):
        return Shift.named(model.token_shift)
    share = 0.5 if model.shift_share is None else model.shift_share
    if model.token_shift == "ramp" or model.shift_last is not None:
        last = 0.1 if model.shift_last is None else model.shift_last
        share += (last - share) * layer / max(1, model.n_layer - 1)
    given = {} if model.shift_roles is None else vars(model.shift_roles)
    shares = {role: value for role, value in given.items() if value is not None}
    own = (model.shift_share, model.shift_roles, model.shift_last) != (None, None, None)
    return Shift(model.token_shift == "learned", share, shares, own)


def check_shift(model: "ModelConfig") -> None:
    """Raise UserError for shares that ``token_shift`` does not read, or that it lacks."""
    readers = {
        "shift_share": ("share", "roles", "ramp", "learned"),
        "shift_roles": ("roles", "learned"),
        "shift_last": ("ramp", "learned"),
    }
    for name, kinds in readers.items():
        if getattr(model, name) is not None and model.token_shift not in kinds:
            raise UserError(
                f"model.{name} does nothing with model.token_shift={model.token_shift}: it goes with {', '.join(kinds)}"
            )
    if model.token_shift == "roles" and model.shift_roles is None:
        raise UserError("model.token_shift=roles needs the shares: e.g. 'model.shift_roles={q: 0.3, k: 0.5, v: 0.7}'")


def pixel_signs(model: "ModelConfig") -> tuple[int, int, tuple[int, int]]:
    """Return side, number of pixel tokens and the ids of the signs before a picture; UserError unless they fit."""
    if model.image_size is None or model.image_levels is None:
        raise UserError("model.positions_2d=true needs pictures: use data=images tokenizer=pixels")
    needed = 2 * model.image_size + 2
    if model.n_embd < needed:
        raise UserError(
            f"model.positions_2d=true needs model.n_embd of at least {needed} for pictures of {model.image_size} x "
            f"{model.image_size} pixels (got {model.n_embd})"
        )
    pixels = model.image_levels**3
    return model.image_size, pixels, (pixels + IMG_FIRST, pixels + IMG)
