"""MHA_rotary (Peng 2021, RWKV-LM v1): the transformer RWKV was compared with.

Causal softmax attention with rotary embedding on half of each head, and a GeGLU channel mix (Shazeer 2020).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_lab.config.registry import register
from rwkv_lab.models.families import HeadsConfig

if TYPE_CHECKING:
    from torch import Generator

    from rwkv_lab.models.lm import LM
    from rwkv_lab.models.rwkv_lm_format import Original


@register("model", "mha_rotary")
@dataclass
class MHARotaryConfig(HeadsConfig):
    """MHA_rotary: attention with rotary embedding."""

    name: str = "mha_rotary"

    def build(self, vocab_size: int, backend: str) -> "LM":
        from rwkv_lab.models.blocks.attention import Attention
        from rwkv_lab.models.blocks.channel_mix import GeGLU
        from rwkv_lab.models.lm import LM, Block

        blocks = [
            Block(
                self,
                l,
                Attention(self.n_embd, self.attention_width, self.heads, self.shift(l), causal=not self.bidirectional),
                GeGLU(self.n_embd, 3 * self.ffn_width, self.shift(l)),
            )
            for l in range(self.n_layer)
        ]
        return LM(self, vocab_size, blocks, time_out=self.time_out, head_qk_bias=True)

    def initialise(self, model: "LM", generator: "Generator") -> None:
        """Matrices and embedding normal with standard deviation 0.01."""
        from rwkv_lab.models import init

        init.norms(model)
        init.normal_embedding(model, 0.01, generator)
        init.normal_linears(model, 0.01, generator)
        init.halved_shifts(model)
        init.time_factors(model)

    def mixing_flops(self) -> float:
        """Return the forward FLOPs per token of scores and weighted sum over all ctx_len positions."""
        return 4.0 * self.ctx_len * self.attention_width * self.n_layer

    def original(self) -> "Original":
        from rwkv_lab.models.rwkv_lm_format import HEADS_RENAMES, Original

        return Original("v1", "MHA_rotary", HEADS_RENAMES, {}, hidden=(3, 1))
