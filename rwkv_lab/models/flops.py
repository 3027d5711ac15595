"""The cost of training, counted from the shapes."""

from torch import nn

from rwkv_lab.models.lm import LM


def flops_per_token(model: LM) -> float:
    """Forward and backward FLOPs per training token at ctx_len; the backward pass costs twice the forward.

    Counts 2 a weight of every linear layer, the head-QK products, and what the architecture does between positions,
    over the full square of positions where it computes one (the convention of Chowdhery et al. 2022, PaLM).
    """
    config = model.config
    linear = sum(2.0 * module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    head_qk = 2.0 * config.head_qk_dim * config.ctx_len
    return 3.0 * (linear + head_qk + config.mixing_flops())
