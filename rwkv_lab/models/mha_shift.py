"""MHA_shift (Peng 2021, RWKV-LM v1): MHA_rotary with the half token shift before attention and channel mix."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_lab.config.model_fields import ShiftKind
from rwkv_lab.config.registry import register
from rwkv_lab.models.mha_rotary import MHARotaryConfig

if TYPE_CHECKING:
    from rwkv_lab.models.rwkv_lm_format import Original


@register("model", "mha_shift")
@dataclass
class MHAShiftConfig(MHARotaryConfig):
    """MHA_shift: MHA_rotary with half token shift."""

    name: str = "mha_shift"
    token_shift: ShiftKind = "half"  # previous token mixed into each sublayer

    def original(self) -> "Original":
        return super().original()._replace(model_type="MHA_shift")
