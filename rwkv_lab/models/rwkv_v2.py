"""RWKV v2 (Peng 2022, RWKV-LM): a decay per channel in place of v1's curve per head.

So it also runs as a recurrent network. Norms on the residual stream itself, one learned token shift per sublayer shared
by k, v and r, and head-QK in the recipe.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rwkv_lab.config.fields import setting
from rwkv_lab.config.registry import register
from rwkv_lab.models.families import ScanConfig

if TYPE_CHECKING:
    from torch import Generator

    from rwkv_lab.models.lm import LM
    from rwkv_lab.models.rwkv_lm_format import Original


@register("model", "rwkv_v2")
@dataclass
class RWKV2Config(ScanConfig):
    """RWKV v2: the first that runs as a recurrent network."""

    name: str = "rwkv_v2"
    norm: Literal["pre", "post"] = "post"  # pre: x += f(norm(x)); post: x = norm(x), x += f(x)
    head_qk_dim: int = setting(256, low=0)  # width of the head-QK term; 0: off

    def build(self, vocab_size: int, backend: str) -> "LM":
        """k cut off at 60 and 1e-16 in the denominator of the scan."""
        return self.scan_model(vocab_size, shared_shift=True, den_eps=1e-16, k_max=60.0, backend=backend)

    def initialise(self, model: "LM", generator: "Generator") -> None:
        """Orthogonal matrices, tiny embedding, halved shifts, decays by layer and channel."""
        from rwkv_lab.models import init

        self.initialise_matrices(model, generator)
        init.halved_shifts(model)
        time_vectors(model)

    def original(self) -> "Original":
        from rwkv_lab.models.rwkv_lm_format import COLUMN_SHAPES, SCAN_RENAMES, Original

        return Original("v2", "RWKV", SCAN_RENAMES, COLUMN_SHAPES)


def time_vectors(model: "LM") -> None:
    """time_decay[i] = ln( f1 f2^(7 i/(C-1)) ), time_first = ln 0.3.

    With q = (l-1)/(L-2): f1 = 3 - 1.8 q, 0.5 more in layer 1; f2 = 0.65 - 0.25 q, but 0.4 and 0.37 in the last layers.
    """
    from rwkv_lab.models import init
    from rwkv_lab.models.blocks.wkv_mix import WKVMix

    C, L = model.config.n_embd, model.config.n_layer
    for layer, block in enumerate(model.blocks):
        if isinstance(block.att, WKVMix):
            q = init.ratio(layer - 1, L - 2)
            f1 = 3.0 - 1.8 * q + (0.5 if layer == 1 else 0.0)
            f2 = {L - 2: 0.4, L - 1: 0.37}.get(layer, 0.65 - 0.25 * q)
            block.att.time_decay.copy_(math.log(f1) + 7.0 * math.log(f2) * init.channel_ramp(C))
            block.att.time_first.fill_(math.log(0.3))
