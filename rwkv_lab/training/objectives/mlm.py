"""Masked-language modelling (Devlin et al. 2019, arXiv 1810.04805): tokens are hidden and predicted from both sides.

Of every sequence the same number of positions is chosen. Their tokens are replaced by the mask token, an id behind the
tokenizer's own, by a random token, or kept; the loss is the cross-entropy of the tokens that were there.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import ObjectiveConfig
from rwkv_lab.config.registry import register

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rwkv_lab.config.schema import Config
    from rwkv_lab.data.token_cache import Split
    from rwkv_lab.models.lm import LM
    from rwkv_lab.training.evaluate import Evaluation

KEPT, MASKED = -1, -2  # in place of the number a random token is drawn by
PURPOSE = 0x6D6C6D  # stream of random numbers
HELD_OUT_SEED = 0  # the same positions of a held-out text are hidden in every run


@register("objective", "mlm")
@dataclass
class MLMConfig(ObjectiveConfig):
    """Masked-language modelling: hidden tokens predicted from both sides; masked accuracy, no bits per byte."""

    name: str = "mlm"
    share: float = setting(0.15, above=0, high=1)  # share of a sequence's positions whose token is predicted
    masked: float = setting(0.8, low=0, high=1)  # share of these replaced by the mask token
    random: float = setting(0.1, low=0, high=1)  # share of these replaced by a random token; the rest is kept

    bidirectional: ClassVar[bool] = True
    extra_tokens: ClassVar[int] = 1  # the mask token, the last id
    usage: ClassVar[str] = 'rwkv-lab fill {run} "the [MASK] sat"'

    def check(self) -> None:
        if self.masked + self.random > 1 + 1e-9:
            raise UserError(
                f"objective.masked={self.masked} and objective.random={self.random} are shares of one whole: "
                "together at most 1, e.g. 0.8 and 0.1"
            )

    def check_run(self, run: "Config") -> None:
        run.model.bidirectional = True
        run.model.check()

    def notes(self) -> list[str]:
        return ["val_bpb is not measured: val_loss is the mean over masked positions, which see both sides"]

    def measures(self, split: "Split") -> tuple[str, ...]:
        return ("val_accuracy",)

    def batch(
        self, rows: "np.ndarray", first: int, seed: int, weights: "np.ndarray | None" = None
    ) -> "tuple[np.ndarray, ...]":
        """Return tokens, weights and replacements [B,T]; the mask token's id is known to the model alone."""
        return rows[:, :-1], *self.hidden(len(rows), rows.shape[1] - 1, first, seed)

    def hidden(self, B: int, T: int, first: int, seed: int) -> "tuple[np.ndarray, np.ndarray]":
        """Return weights, 1 where a token is predicted, and replacements [B,T] of sequence ``first`` and the next ones.

        A replacement is KEPT, MASKED or the number at least 0 that a random token is drawn by.
        """
        import numpy as np

        from rwkv_lab.data.sampling import draws

        places, kinds, words = draws(seed, PURPOSE, first + np.arange(B), 3 * T).reshape(B, 3, T).swapaxes(0, 1)
        weights = np.zeros((B, T), np.float32)
        chosen = np.argsort(places, axis=1)[:, : max(1, round(self.share * T))]
        np.put_along_axis(weights, chosen, 1.0, axis=1)
        fraction = kinds / 2.0**64
        replacements = np.where(fraction < self.masked + self.random, (words >> np.uint64(1)).astype(np.int64), KEPT)
        replacements = np.where(fraction < self.masked, MASKED, replacements)
        return weights, np.where(weights > 0, replacements, KEPT)

    def loss(self, model: "LM", *batch: "torch.Tensor") -> "torch.Tensor":
        tokens, weights, replacements = batch
        return model.loss(corrupted(tokens, replacements, model.vocab_size), tokens, weights)

    def evaluate(
        self, model: "LM", split: "Split", ctx_len: int, batch_size: int, device: str, tokens: int
    ) -> "Evaluation":
        return self.evaluate_final(model, split, ctx_len, batch_size, device, tokens)

    def evaluate_final(
        self, model: "LM", split: "Split", ctx_len: int, batch_size: int, device: str, tokens: int | None
    ) -> "Evaluation":
        """Return loss and accuracy of the positions hidden in windows of ``ctx_len``, one after the other."""
        import numpy as np
        import torch

        from rwkv_lab.training.evaluate import evaluating, rows_at_once, weighted_evaluation, weighted_sums

        T = min(ctx_len, len(split))
        windows = max(1, min(tokens or len(split), len(split)) // T)
        batch = rows_at_once(batch_size, T, model.vocab_size)
        sums = []
        with evaluating(model):
            for first in range(0, windows, batch):
                starts = np.arange(first, min(first + batch, windows)) * T
                rows = split.tokens[starts[:, None] + np.arange(T)].astype(np.int64)  # [B,T]
                arrays = rows, *self.hidden(len(rows), T, first, HELD_OUT_SEED)
                targets, weights, replacements = (torch.from_numpy(array).to(device) for array in arrays)
                logits = model(corrupted(targets, replacements, model.vocab_size))
                sums.append(weighted_sums(logits, targets, weights))
        return weighted_evaluation(sums, f"masked positions of the first {windows * T} tokens in windows of {T}")


def corrupted(tokens: "torch.Tensor", replacements: "torch.Tensor", vocab_size: int) -> "torch.Tensor":
    """Return what the model reads, [B,T], for a vocabulary whose last id is the mask token."""
    import torch

    mask = vocab_size - 1
    read = torch.where(replacements >= 0, replacements % mask, tokens)
    return torch.where(replacements == MASKED, mask, read)
