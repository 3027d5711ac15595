"""MHA_shift (Peng 2021, RWKV-LM v1): MHA_rotary with the half token shift before attention and channel mix."""

from rwkv_lab.models.mha_rotary import FIXED_LENGTH, RECURRENT, blocks, initialise, mixing_flops
from rwkv_lab.models.reference_names import HEADS_RENAMES, Original

__all__ = ["FIXED_LENGTH", "ORIGINAL", "RECURRENT", "blocks", "initialise", "mixing_flops"]

ORIGINAL = Original("v1", "MHA_shift", HEADS_RENAMES, {})
