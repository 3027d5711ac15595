"""RWKV v3 (Peng 2022, RWKV-LM): v2's scan in pre-norm blocks, with a norm after the tiny embedding.

Unlike v2, each of k, v and r has its own learned token shift, and the vectors start from curves over layer and channel.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_lab.config.registry import register
from rwkv_lab.models.families import ScanConfig

if TYPE_CHECKING:
    from torch import Generator

    from rwkv_lab.models.lm import LM
    from rwkv_lab.models.rwkv_lm_format import Original


@register("model", "rwkv_v3")
@dataclass
class RWKV3Config(ScanConfig):
    """RWKV v3: v2 in pre-norm blocks with a norm after the tiny embedding."""

    name: str = "rwkv_v3"

    def build(self, vocab_size: int, backend: str) -> "LM":
        """k cut off at 60 and 1e-8 in the denominator of the scan."""
        return self.scan_model(vocab_size, shared_shift=False, den_eps=1e-8, k_max=60.0, backend=backend)

    def initialise(self, model: "LM", generator: "Generator") -> None:
        """Orthogonal matrices, tiny embedding, vectors by layer and channel."""
        from rwkv_lab.models import init

        self.initialise_matrices(model, generator)
        init.layer_ramp_shifts(model)
        curved_time_vectors(model)

    def original(self) -> "Original":
        from rwkv_lab.models.rwkv_lm_format import COLUMN_SHAPES, SCAN_RENAMES, Original

        return Original("v3", "RWKV", SCAN_RENAMES, COLUMN_SHAPES)


def curved_time_vectors(model: "LM") -> None:
    """time_decay and time_first of v3 and v4.

    time_decay[i] = -5 + 8 (i/(C-1))^(0.7 + 1.3 l/(L-1)): from forgetting 0.7 % a step to forgetting all, in deeper
    layers with more of the slow channels; time_first[i] = ln 0.3 + 0.5 ((i+1) mod 3 - 1).
    """
    import torch

    from rwkv_lab.models import init
    from rwkv_lab.models.blocks.wkv_mix import WKVMix

    C, L = model.config.n_embd, model.config.n_layer
    for layer, block in enumerate(model.blocks):
        if isinstance(block.att, WKVMix):
            power = 0.7 + 1.3 * init.ratio(layer, L - 1)
            block.att.time_decay.copy_(-5.0 + 8.0 * init.channel_ramp(C) ** power)
            block.att.time_first.copy_(math.log(0.3) + 0.5 * ((torch.arange(C) + 1) % 3 - 1))
