"""Next-token prediction: the mean cross-entropy of every token given those before it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import ObjectiveConfig
from rwkv_lab.config.registry import register

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rwkv_lab.data.token_cache import Split
    from rwkv_lab.models.lm import LM
    from rwkv_lab.training.evaluate import Evaluation


@register("objective", "lm")
@dataclass
class LMConfig(ObjectiveConfig):
    """Next-token prediction."""

    name: str = setting("lm", hash_default=False)

    weighted: ClassVar[bool] = True

    def batch(
        self,
        rows: "np.ndarray",
        first: int,
        seed: int,
        weights: "np.ndarray | None" = None,
        targets: "np.ndarray | None" = None,
        start: "np.ndarray | None" = None,
    ) -> "tuple[np.ndarray, ...]":
        """Return inputs and targets, int64 [B,T] or [B,T,J], and what else there is, as ``LM.loss`` takes them."""
        found = rows[:, :-1], rows[:, 1:] if targets is None else targets
        return (*found, *(more for more in (weights, start) if more is not None))

    def measures(self, split: "Split") -> tuple[str, ...]:
        return ("val_accuracy",) if split.weighted else ()

    def loss(self, model: "LM", *batch: "torch.Tensor") -> "torch.Tensor":
        """Return the model's own loss of inputs, targets and perhaps weights [B,T]."""
        return model.loss(*batch)

    def evaluate(
        self, model: "LM", split: "Split", ctx_len: int, batch_size: int, device: str, tokens: int
    ) -> "Evaluation":
        from rwkv_lab.training.evaluate import evaluate_fixed, evaluate_sequences

        if split.weighted:
            return evaluate_sequences(model, split, ctx_len, tokens, batch_size, device)
        return evaluate_fixed(model, split, ctx_len, tokens, batch_size, device)

    def evaluate_final(
        self, model: "LM", split: "Split", ctx_len: int, batch_size: int, device: str, tokens: int | None
    ) -> "Evaluation":
        from rwkv_lab.training.evaluate import evaluate_full, evaluate_sequences

        if split.weighted:
            return evaluate_sequences(model, split, ctx_len, tokens, batch_size, device)
        return evaluate_full(model, split, ctx_len, batch_size, device, tokens)
