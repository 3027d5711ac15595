"""MHA_rotary (Peng 2021, RWKV-LM v1): the transformer RWKV was compared with.

Causal softmax attention with rotary embedding on half of each head, and a GeGLU channel mix (Shazeer 2020).
"""

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from rwkv_lab.models import init
from rwkv_lab.models.blocks.rotary import rotary_angles, rotate
from rwkv_lab.models.blocks.tricks import TokenShift, merge_heads, split_heads
from rwkv_lab.models.config import HeadsConfig
from rwkv_lab.models.lm import LM, Block
from rwkv_lab.models.reference_names import HEADS_RENAMES, Original

RECURRENT = False
FIXED_LENGTH = False
ORIGINAL = Original("v1", "MHA_rotary", HEADS_RENAMES, {})


class Attention(nn.Module):
    """output( softmax(q k^T / sqrt(S)) v ) per head of S channels, u <= t."""

    def __init__(self, config: HeadsConfig):
        super().__init__()
        C, width = config.n_embd, config.attention_width
        self.n_head = config.heads
        self.shift = TokenShift(config.token_shift, C, "qkv")
        self.query = nn.Linear(C, width)
        self.key = nn.Linear(C, width)
        self.value = nn.Linear(C, width)
        self.output = nn.Linear(width, C)

    def forward(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        """x [B,T,C] -> [B,T,C]."""
        q, k, v = self.heads(x)
        return self.output(merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))), None

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B,T,C] -> q, k (rotated) and v, each [B,H,T,S]."""
        xq, xk, xv = self.shift(x)
        q, k, v = (split_heads(part, self.n_head) for part in (self.query(xq), self.key(xk), self.value(xv)))
        angles = rotary_angles(x.shape[1], q.shape[-1], q)
        return rotate(q, angles), rotate(k, angles), v


class GeGLU(nn.Module):
    """output( gelu(key(x)) * value(x) ), three times as wide inside, exact (erf) gelu."""

    def __init__(self, config: HeadsConfig):
        super().__init__()
        C, width = config.n_embd, 3 * config.ffn_width
        self.shift = TokenShift(config.token_shift, C, "kv")
        self.key = nn.Linear(C, width)
        self.value = nn.Linear(C, width)
        self.output = nn.Linear(width, C)

    def forward(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        """x [B,T,C] -> [B,T,C]."""
        xk, xv = self.shift(x)
        return self.output(F.gelu(self.key(xk)) * self.value(xv)), None


def blocks(config: HeadsConfig, backend: str) -> list[Block]:
    """One block a layer; there is no scan, so `backend` is not used."""
    return [Block(config, l, Attention(config), GeGLU(config)) for l in range(config.n_layer)]


def initialise(model: LM, generator: Generator) -> None:
    """Fills every parameter: matrices and embedding normal with standard deviation 0.01."""
    init.norms(model)
    init.normal_embedding(model, 0.01, generator)
    init.normal_linears(model, 0.01, generator)
    init.halved_shifts(model)
    init.time_factors(model)


def mixing_flops(config: HeadsConfig) -> float:
    """Forward FLOPs per token outside the linear layers: scores and weighted sum over all ctx_len positions."""
    return 4.0 * config.ctx_len * config.attention_width * config.n_layer
