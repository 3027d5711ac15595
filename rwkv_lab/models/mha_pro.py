"""MHA_pro (Peng 2021, RWKV-LM v1): attention with every trick of its time.

MHA_shift's attention, whose weights after the softmax are multiplied by v1's time weights and mixed between heads
(Shazeer et al. 2020, talking heads); the channel mix is v1's.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from rwkv_lab.models import init
from rwkv_lab.models.blocks.tricks import causal_window, merge_heads
from rwkv_lab.models.config import HeadsConfig
from rwkv_lab.models.lm import LM, Block
from rwkv_lab.models.mha_rotary import Attention
from rwkv_lab.models.reference_names import HEADS_RENAMES, Original
from rwkv_lab.models.rwkv_v1 import ChannelMix
from rwkv_lab.ops.toeplitz import toeplitz_weights

RECURRENT = False
FIXED_LENGTH = True
ORIGINAL = Original("v1", "MHA_pro", HEADS_RENAMES, {})


class WeightedAttention(Attention):
    """gamma[t] output( a' v ), a'_g = sum_h M[g,h] softmax(q k^T / sqrt(S))_h W_h, W as in v1, not renormalised."""

    def __init__(self, config: HeadsConfig):
        super().__init__(config)
        H, L = config.heads, config.ctx_len
        self.time_w = nn.Parameter(torch.empty(H, L))  # the last entry belongs to distance 0
        self.time_alpha = nn.Parameter(torch.empty(H, 1, L))
        self.time_beta = nn.Parameter(torch.empty(H, L, 1))
        self.time_gamma = nn.Parameter(torch.empty(L, 1))
        self.head_mix = nn.Parameter(torch.empty(H, H, 1, 1))  # M, a 1x1 convolution

    def forward(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        """x [B,T,C], T <= ctx_len -> [B,T,C]."""
        T = x.shape[1]
        q, k, v = self.heads(x)  # [B,H,T,S]
        future = torch.zeros(T, T, dtype=q.dtype, device=x.device).masked_fill(
            ~causal_window(T, T, T, x.device), -torch.inf
        )
        scores = torch.baddbmm(
            future, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=1.0 / math.sqrt(q.shape[-1])
        )  # [B*H,T,T]
        att = torch.softmax(scores, dim=-1).unflatten(0, (-1, self.n_head))  # [B,H,T,T]
        att = att * toeplitz_weights(self.time_w, self.time_alpha, self.time_beta, T)
        att = F.conv2d(att, self.head_mix)  # a convolution runs several times as fast as M @ att
        return self.output(merge_heads(att @ v)) * self.time_gamma[:T], None


def blocks(config: HeadsConfig, backend: str) -> list[Block]:
    """One block a layer; there is no scan, so `backend` is not used."""
    return [Block(config, l, WeightedAttention(config), ChannelMix(config)) for l in range(config.n_layer)]


def initialise(model: LM, generator: Generator) -> None:
    """Fills every parameter: matrices normal as in MHA_rotary, time weights 1, the head mix uniform."""
    init.norms(model)
    init.normal_embedding(model, 0.01, generator)
    init.normal_linears(model, 0.01, generator)
    init.halved_shifts(model)
    init.time_factors(model)
    for module in model.modules():
        if isinstance(module, WeightedAttention):
            nn.init.ones_(module.time_w)
            bound = 1.0 / math.sqrt(module.n_head)  # what torch gives a 1x1 convolution over that many channels
            module.head_mix.uniform_(-bound, bound, generator=generator)


def mixing_flops(config: HeadsConfig) -> float:
    """Forward FLOPs per token outside the linear layers: scores, head mix and weighted sum over ctx_len."""
    per_pair = 4.0 * config.attention_width + 2.0 * config.heads**2
    return per_pair * config.ctx_len * config.n_layer
