"""RWKV v4 (Peng et al. 2023): v3's scan in exact arithmetic, without limit on k and without an epsilon.

Unlike v3, the scan keeps a running maximum of the exponents, so no k overflows, and the recipe has L2Wrap.
"""

import math

import torch
from torch import Generator

from rwkv_lab.models import init
from rwkv_lab.models.config import ScanConfig
from rwkv_lab.models.lm import LM, Block
from rwkv_lab.models.scan_mix import ChannelMix, TimeMix, mixing_flops

__all__ = ["FIXED_LENGTH", "RECURRENT", "blocks", "initialise", "mixing_flops", "time_vectors"]

RECURRENT = True
FIXED_LENGTH = False

# a zero output keeps every sublayer silent at first, a zero key and receptance make it start as a plain average
SCALES = {
    "att.key": 0.0,
    "att.receptance": 0.0,
    "att.output": 0.0,
    "ffn.value": 0.0,
    "ffn.receptance": 0.0,
    "head": 0.5,
    "head_qk.q": 0.0,
    "head_qk.k": 0.1,
}


def blocks(config: ScanConfig, backend: str) -> list[Block]:
    """One block a layer; with ffn_pre the first has a channel mix in place of its time mix."""

    def att(layer: int) -> TimeMix | ChannelMix:
        if layer == 0 and config.ffn_pre:
            return ChannelMix(config, shared_shift=False)
        return TimeMix(config, shared_shift=False, den_eps=0.0, k_max=None, backend=backend)

    return [Block(config, l, att(l), ChannelMix(config, shared_shift=False)) for l in range(config.n_layer)]


def initialise(model: LM, generator: Generator) -> None:
    """Fills every parameter: orthogonal matrices, tiny embedding, vectors by layer and channel."""
    init.norms(model)
    init.orthogonal_embedding(model, 1e-4, generator)
    init.orthogonal_linears(model, SCALES, generator)
    init.layer_ramp_shifts(model)
    time_vectors(model)


def time_vectors(model: LM) -> None:
    """time_decay and time_first of v3 and v4.

    time_decay[i] = -5 + 8 (i/(C-1))^(0.7 + 1.3 l/(L-1)): from forgetting 0.7 % a step to forgetting all, in deeper layers
    with more of the slow channels; time_first[i] = ln 0.3 + 0.5 ((i+1) mod 3 - 1).
    """
    C, L = model.config.n_embd, model.config.n_layer
    for layer, block in enumerate(model.blocks):
        if isinstance(block.att, TimeMix):
            power = 0.7 + 1.3 * init.ratio(layer, L - 1)
            block.att.time_decay.copy_(-5.0 + 8.0 * init.channel_ramp(C) ** power)
            block.att.time_first.copy_(math.log(0.3) + 0.5 * ((torch.arange(C) + 1) % 3 - 1))
