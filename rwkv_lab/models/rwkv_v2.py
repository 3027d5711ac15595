"""RWKV v2 (Peng 2022, RWKV-LM): a decay per channel in place of v1's curve per head.

So it also runs as a recurrent network. Norms on the residual stream itself, one learned token shift per sublayer shared
by k, v and r, and head-QK in the recipe.
"""

import math

import torch
from torch import Generator

from rwkv_lab.models import init
from rwkv_lab.models.blocks.wkv_mix import SCALES, TimeMix, make_blocks, mixing_flops
from rwkv_lab.models.config import ScanConfig
from rwkv_lab.models.lm import LM, Block
from rwkv_lab.models.reference_names import COLUMN_SHAPES, SCAN_RENAMES, Original

__all__ = ["FIXED_LENGTH", "ORIGINAL", "RECURRENT", "blocks", "initialise", "mixing_flops"]

RECURRENT = True
FIXED_LENGTH = False
ORIGINAL = Original("v2", "RWKV", SCAN_RENAMES, COLUMN_SHAPES)


def blocks(config: ScanConfig, backend: str) -> list[Block]:
    """One block a layer; k cut off at 60 and 1e-16 in the denominator of the scan."""
    return make_blocks(config, shared_shift=True, den_eps=1e-16, k_max=60.0, backend=backend)


def initialise(model: LM, generator: Generator) -> None:
    """Fills every parameter: orthogonal matrices, tiny embedding, halved shifts, decays by layer and channel."""
    init.norms(model)
    init.orthogonal_embedding(model, 1e-4, generator)
    init.orthogonal_linears(model, SCALES, generator)
    init.halved_shifts(model)
    time_vectors(model)


def time_vectors(model: LM) -> None:
    """time_decay[i] = ln( f1 f2^(7 i/(C-1)) ), time_first = ln 0.3.

    With q = (l-1)/(L-2): f1 = 3 - 1.8 q, 0.5 more in layer 1; f2 = 0.65 - 0.25 q, but 0.4 and 0.37 in the last layers.
    """
    C, L = model.config.n_embd, model.config.n_layer
    for layer, block in enumerate(model.blocks):
        if isinstance(block.att, TimeMix):
            q = init.ratio(layer - 1, L - 2)
            f1 = 3.0 - 1.8 * q + (0.5 if layer == 1 else 0.0)
            f2 = {L - 2: 0.4, L - 1: 0.37}.get(layer, 0.65 - 0.25 * q)
            block.att.time_decay.copy_(math.log(f1) + 7.0 * math.log(f2) * init.channel_ramp(C))
            torch.nn.init.constant_(block.att.time_first, math.log(0.3))
