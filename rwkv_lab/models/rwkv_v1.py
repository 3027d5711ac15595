"""RWKV v1 (Peng 2021, RWKV-LM): attention without queries, its weights a learned curve of the distance.

The first of the line: a curve per head stored for every distance up to ctx_len, where v2 and later have a decay per
channel; half token shift; biases on every linear layer; a gated channel mix with mish.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from rwkv_lab.models import init
from rwkv_lab.models.blocks.tricks import TinyAttention, TokenShift
from rwkv_lab.models.config import HeadsConfig, RWKV1Config
from rwkv_lab.models.lm import LM, Block
from rwkv_lab.models.reference_names import HEADS_RENAMES, Original
from rwkv_lab.ops.toeplitz import toeplitz_mix

RECURRENT = False
FIXED_LENGTH = True
ORIGINAL = Original("v1", "RWKV", HEADS_RENAMES, {})

K_MIN, K_MAX = -60.0, 30.0  # keeps e^k and its running sum within float32
SCALES = {
    "att.key": 0.0,
    "att.receptance": 0.0,
    "att.output": 0.0,
    "ffn.receptance": 0.0,
    "ffn.output": 0.0,
    "head": 0.4,
    "head_qk.q": 0.01,
    "head_qk.k": 0.01,
}


class TimeMix(nn.Module):
    """gamma[t] ( output( sigmoid(r) y_t / n_t ) + tiny attention ), e = e^k cut off at both ends,

    y_t = sum_{u<=t} W[h,t,u] e_u v_u with W[h,t,u] = w[h, ctx_len-1-(t-u)] alpha[h,u] beta[h,t], n_t = sum_{u<=t} e_u.
    """

    def __init__(self, config: RWKV1Config):
        super().__init__()
        C, width, H, L = config.n_embd, config.attention_width, config.heads, config.ctx_len
        self.n_head = H
        self.shift = TokenShift(config.token_shift, C, "kvr")
        self.time_w = nn.Parameter(torch.empty(H, L))  # the last entry belongs to distance 0
        self.time_alpha = nn.Parameter(torch.empty(H, 1, L))
        self.time_beta = nn.Parameter(torch.empty(H, L, 1))
        self.time_gamma = nn.Parameter(torch.empty(L, 1))
        self.key = nn.Linear(C, width)
        self.value = nn.Linear(C, width)
        self.receptance = nn.Linear(C, width)
        self.output = nn.Linear(width, C)
        tiny = config.tiny_attention
        self.tiny_att = TinyAttention(C, tiny, config.tiny_attention_heads) if tiny else None

    def forward(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        """x [B,T,C], T <= ctx_len -> [B,T,C]."""
        xk, xv, xr = self.shift(x)
        k, v, r = self.key(xk), self.value(xv), self.receptance(xr)  # [B,T,A]
        # sums of e^k span 40 decades, more than half precision resolves
        e = torch.exp(k.to(torch.promote_types(k.dtype, torch.float32)).clamp(K_MIN, K_MAX))
        kv = (e * v).unflatten(-1, (self.n_head, -1))  # [B,T,H,S]
        y = toeplitz_mix(self.time_w, self.time_alpha, self.time_beta, kv).flatten(2)
        out = self.output(torch.sigmoid(r) * y / e.cumsum(dim=1))
        if self.tiny_att is not None:
            out = out + self.tiny_att(xv)
        return out * self.time_gamma[: x.shape[1]], None


class ChannelMix(nn.Module):
    """sigmoid(receptance(x)) * output( mish(key(x)) * value(x) ), 5/2 as wide inside."""

    def __init__(self, config: HeadsConfig):
        super().__init__()
        C, width = config.n_embd, 5 * config.ffn_width // 2
        self.shift = TokenShift(config.token_shift, C, "kvr")
        self.key = nn.Linear(C, width)
        self.value = nn.Linear(C, width)
        self.receptance = nn.Linear(C, C)
        self.output = nn.Linear(width, C)

    def forward(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        """x [B,T,C] -> [B,T,C]."""
        xk, xv, xr = self.shift(x)
        return torch.sigmoid(self.receptance(xr)) * self.output(F.mish(self.key(xk)) * self.value(xv)), None


def blocks(config: RWKV1Config, backend: str) -> list[Block]:
    """One block a layer; there is no scan, so `backend` is not used."""
    return [Block(config, l, TimeMix(config), ChannelMix(config)) for l in range(config.n_layer)]


def initialise(model: LM, generator: Generator) -> None:
    """Fills every parameter: orthogonal matrices, and curves from fast decay in the first head to none in the last."""
    init.norms(model)
    init.orthogonal_embedding(model, 0.4, generator)
    init.orthogonal_linears(model, SCALES, generator)
    init.halved_shifts(model)
    init.time_factors(model)
    for module in model.modules():
        if isinstance(module, TimeMix):
            H, L = module.time_w.shape
            distance = torch.arange(L - 1, -1, -1, dtype=torch.float64)
            for h in range(H):
                speed = L ** -((h + 1) / (H - 1)) if h < H - 1 else 0.0
                module.time_w[h] = torch.exp(-distance * speed)


def mixing_flops(config: RWKV1Config) -> float:
    """Forward FLOPs per token outside the linear layers: W times kv, and the tiny attention, over all positions."""
    width = 2.0 * config.attention_width + 4.0 * config.tiny_attention
    return width * config.ctx_len * config.n_layer
