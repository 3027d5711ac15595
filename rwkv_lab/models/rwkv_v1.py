"""RWKV v1 (Peng 2021, RWKV-LM): attention without queries, its weights a learned curve of the distance.

The first of the line: a curve per head stored for every distance up to ctx_len, where v2 and later have a decay per
channel; half token shift; biases on every linear layer; a gated channel mix with mish.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.model_fields import ShiftKind
from rwkv_lab.config.registry import register
from rwkv_lab.models.families import HeadsConfig

if TYPE_CHECKING:
    from torch import Generator

    from rwkv_lab.models.lm import LM
    from rwkv_lab.models.rwkv_lm_format import Original


@register("model", "rwkv_v1")
@dataclass
class RWKV1Config(HeadsConfig):
    """RWKV v1: attention by learned curves of the distance."""

    name: str = "rwkv_v1"
    token_shift: ShiftKind = "half"  # previous token mixed into each sublayer
    tiny_attention: int = setting(0, low=0)  # width of a small attention added to each time mix; 0: off
    tiny_attention_heads: int = setting(1, low=1)  # its heads

    def check(self) -> None:
        super().check()
        if self.tiny_attention % self.tiny_attention_heads:
            raise UserError("model.tiny_attention_heads must divide the width model.tiny_attention")
        if self.tiny_attention_heads > 1 and self.tiny_attention == 0:
            raise UserError("model.tiny_attention_heads does nothing alone: set model.tiny_attention, e.g. 64")

    def build(self, vocab_size: int, backend: str) -> "LM":
        from rwkv_lab.models.blocks.channel_mix import GatedMish
        from rwkv_lab.models.blocks.toeplitz_mix import ToeplitzMix
        from rwkv_lab.models.lm import LM, Block

        C, L, A, H = self.n_embd, self.ctx_len, self.attention_width, self.heads
        blocks = [
            Block(
                self,
                l,
                ToeplitzMix(
                    C,
                    A,
                    H,
                    L,
                    self.shift(l),
                    self.tiny_attention,
                    self.tiny_attention_heads,
                    causal=not self.bidirectional,
                ),
                GatedMish(C, 5 * self.ffn_width // 2, self.shift(l)),
            )
            for l in range(self.n_layer)
        ]
        return LM(self, vocab_size, blocks, fixed_length=True, time_out=self.time_out, head_qk_bias=True)

    def initialise(self, model: "LM", generator: "Generator") -> None:
        """Orthogonal matrices, and curves from fast decay in the first head to none in the last."""
        import torch

        from rwkv_lab.models import init
        from rwkv_lab.models.blocks.channel_mix import GatedMish
        from rwkv_lab.models.blocks.head_qk import HeadQK
        from rwkv_lab.models.blocks.toeplitz_mix import ToeplitzMix
        from rwkv_lab.models.lm import LM

        scales: init.Scales = {
            ToeplitzMix: {"key": 0.0, "receptance": 0.0, "output": 0.0},
            GatedMish: {"receptance": 0.0, "output": 0.0},
            LM: {"head": 0.4},
            HeadQK: {"q": 0.01, "k": 0.01},
        }
        init.norms(model)
        init.orthogonal_embedding(model, 0.4, generator)
        init.orthogonal_linears(model, scales, generator)
        init.halved_shifts(model)
        init.time_factors(model)
        H, L = self.heads, self.ctx_len
        distance = torch.arange(L - 1, -1, -1, dtype=torch.float64)
        for module in model.modules():
            if isinstance(module, ToeplitzMix):
                for h in range(H):
                    speed = L ** -((h + 1) / (H - 1)) if h < H - 1 else 0.0
                    module.time_w[h] = torch.exp(-distance * speed)

    def mixing_flops(self) -> float:
        """Return the forward FLOPs per token of W times ev and of the tiny attention, over all positions."""
        return (2.0 * self.attention_width + 4.0 * self.tiny_attention) * self.ctx_len * self.n_layer

    def original(self) -> "Original":
        from rwkv_lab.models.rwkv_lm_format import HEADS_RENAMES, Original

        return Original("v1", "RWKV", HEADS_RENAMES, {}, hidden=(5, 2))
