"""MHA_pro (Peng 2021, RWKV-LM v1): attention with every trick of its time.

MHA_shift's attention, whose weights after the softmax are multiplied by v1's time weights and mixed between heads
(Shazeer et al. 2020, talking heads); the channel mix is v1's.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_lab.config.model_fields import ShiftKind
from rwkv_lab.config.registry import register
from rwkv_lab.models.families import HeadsConfig

if TYPE_CHECKING:
    from torch import Generator

    from rwkv_lab.models.lm import LM
    from rwkv_lab.models.rwkv_lm_format import Original


@register("model", "mha_pro")
@dataclass
class MHAProConfig(HeadsConfig):
    """MHA_pro: attention with time weights and talking heads."""

    name: str = "mha_pro"
    token_shift: ShiftKind = "half"  # previous token mixed into each sublayer

    def build(self, vocab_size: int, backend: str) -> "LM":
        from rwkv_lab.models.blocks.channel_mix import GatedMish
        from rwkv_lab.models.blocks.toeplitz_mix import WeightedAttention
        from rwkv_lab.models.lm import LM, Block

        blocks = [
            Block(
                self,
                l,
                WeightedAttention(
                    self.n_embd,
                    self.attention_width,
                    self.heads,
                    self.ctx_len,
                    self.shift(l),
                    causal=not self.bidirectional,
                ),
                GatedMish(self.n_embd, 5 * self.ffn_width // 2, self.shift(l)),
            )
            for l in range(self.n_layer)
        ]
        return LM(self, vocab_size, blocks, fixed_length=True, time_out=self.time_out, head_qk_bias=True)

    def initialise(self, model: "LM", generator: "Generator") -> None:
        """Matrices normal as in MHA_rotary, time weights 1, the head mix uniform."""
        from torch.nn.init import ones_

        from rwkv_lab.models import init
        from rwkv_lab.models.blocks.toeplitz_mix import WeightedAttention

        init.norms(model)
        init.normal_embedding(model, 0.01, generator)
        init.normal_linears(model, 0.01, generator)
        init.halved_shifts(model)
        init.time_factors(model)
        bound = 1.0 / math.sqrt(self.heads)  # torch's default for a 1x1 convolution over that many channels
        for module in model.modules():
            if isinstance(module, WeightedAttention):
                ones_(module.time_w)
                module.head_mix.uniform_(-bound, bound, generator=generator)

    def mixing_flops(self) -> float:
        """Return the forward FLOPs per token of scores, head mix and weighted sum over ctx_len positions."""
        return (4.0 * self.attention_width + 2.0 * self.heads**2) * self.ctx_len * self.n_layer

    def original(self) -> "Original":
        from rwkv_lab.models.rwkv_lm_format import HEADS_RENAMES, Original

        return Original("v1", "MHA_pro", HEADS_RENAMES, {}, hidden=(5, 2))
