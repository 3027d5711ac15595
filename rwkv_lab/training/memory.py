"""Memory of a run: an estimate before it starts, and advice when it was not enough."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rwkv_lab.config.schema import Config
from rwkv_lab.util.units import count

if TYPE_CHECKING:
    from torch import nn


def estimate(config: Config, parameters: "Mapping[str, nn.Parameter]", vocab_size: int) -> dict[str, float]:
    """Return bytes by what takes them: weights with gradients, optimizer state, activations and logits.

    Activations are those one micro-batch keeps: about 34 values a token, layer and channel in 16 bits (Korthikanti et
    al. 2022, arXiv 2205.05198, without attention's quadratic part). Of the logits there are three fp32 copies.
    """
    trainer, model = config.trainer, config.model
    tokens = trainer.batch_size // trainer.accumulate * model.ctx_len
    width = 2 if trainer.precision == "bf16" else 4
    return {
        "weights and gradients": 8.0 * sum(parameter.numel() for parameter in parameters.values()),
        "optimizer state": float(config.optimizer.state_bytes(parameters)),
        "activations": tokens * 34 / 2 * model.n_layer * model.n_embd * width,
        "logits": tokens * 3.0 * vocab_size * 4,
    }


def advice(config: Config, parameters: "Mapping[str, nn.Parameter]", vocab_size: int) -> str:
    """Return a sentence on a run that is out of memory: what to change, and what is large."""
    parts = sorted(estimate(config, parameters, vocab_size).items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {count(size)}B" for name, size in parts)
    smaller = (
        ""
        if parts[0][0] in ("activations", "logits")
        else f", or choose a smaller model or vocabulary (now {vocab_size})"
    )
    return (
        f"out of memory: lower trainer.batch_size, or raise trainer.accumulate{smaller}; of about "
        f"{count(sum(size for _, size in parts))}B, {shown}"
    )
