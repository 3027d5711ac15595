"""The norm after the embedding, absorbed into it: the same function with one layer less."""

import dataclasses

import torch
from torch import nn

from rwkv_lab.config.errors import UserError
from rwkv_lab.models.factory import skeleton
from rwkv_lab.models.lm import LM


@torch.no_grad()
def absorb_norm(model: LM) -> LM:
    """Return the model with ln0(emb) as its embedding and no ln0: each row is normalised once, and never again.

    Raises UserError for a model without that norm, or with post-norm, whose first block needs it after training too.
    """
    ln0 = model.blocks[0].ln0
    if not isinstance(ln0, nn.LayerNorm):
        why = "its blocks are post-norm" if model.config.norm == "post" else "it has none"
        raise UserError(f"this {model.config.name} has no norm after the embedding to absorb: {why}")
    config = dataclasses.replace(
        model.config, emb_init=model.config.embedding_start, small_init_emb=None, emb_norm=False
    )
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith("blocks.0.ln0.")}
    tensors["emb.weight"] = ln0(model.emb.weight)
    absorbed = skeleton(config, model.vocab_size)
    absorbed.load_state_dict(tensors, assign=True)
    return absorbed.requires_grad_(True)
