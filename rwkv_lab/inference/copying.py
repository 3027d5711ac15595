"""What head-QK adds to the logits of earlier tokens of a text: above 0 it copies them, below 0 it avoids them."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rwkv_lab.config.errors import UserError

if TYPE_CHECKING:
    from rwkv_lab.data import Tokenizer
    from rwkv_lab.models.lm import LM


class Copied(NamedTuple):
    """Scores of head-QK for a text of T tokens."""

    tokens: list[str]
    ids: np.ndarray  # [T]
    scores: np.ndarray  # [T,T]; [t,u] is added to the logit of token u where t is the last token read; nan for u > t

    def strongest(self, count: int) -> list[tuple[int, int, float]]:
        """Return (t, u, score) of the ``count`` largest scores and the ``count`` smallest, in falling order."""
        t, u = np.nonzero(np.isfinite(self.scores))
        order = np.argsort(-self.scores[t, u], kind="stable")
        kept = order if len(order) <= 2 * count else np.concatenate((order[:count], order[-count:]))
        return [(int(t[i]), int(u[i]), float(self.scores[t[i], u[i]])) for i in kept]

    def hits(self) -> tuple[float, float]:
        """Return the mean score of earlier tokens that do follow next, and that of those that do not; nan for none."""
        nxt = np.append(self.ids[1:], -1)
        right = nxt[:, None] == self.ids[None, :]
        seen = np.isfinite(self.scores)
        seen[-1] = False
        means = [
            float(self.scores[mask].mean()) if mask.any() else float("nan") for mask in (seen & right, seen & ~right)
        ]
        return means[0], means[1]


def copied(run: str | Path, text: str | None) -> Copied:
    """Return the scores of a run's head-QK for ``text``, cut to the model's ctx_len tokens.

    None: the first held-out sequence of a run that was trained on a task. Raises UserError for a model without head-QK.
    """
    from rwkv_lab.models.opening import with_tokenizer

    model, tokenizer = with_tokenizer(run, None)
    if model.head_qk is None:
        raise UserError(f"{run} has no head-QK: train one with model.head_qk_dim=256")
    ids, tokens = _first_sequence(Path(run)) if text is None else _encoded(text, tokenizer)
    ids, tokens = ids[: model.config.ctx_len], tokens[: model.config.ctx_len]
    if len(ids) < 2:
        raise UserError("--text must have at least 2 tokens")
    return Copied(tokens, ids, scores(model, ids))


def scores(model: "LM", ids: np.ndarray) -> np.ndarray:
    """Return q_t . k_u / D of the model's head-QK for tokens ids [T], float32 [T,T], nan for u > t."""
    import torch

    given: list[torch.Tensor] = []
    head_qk = model.head_qk
    assert head_qk is not None
    hook = head_qk.register_forward_pre_hook(lambda module, inputs: given.append(inputs[1]))
    try:
        with torch.no_grad():
            model.float().eval()(torch.from_numpy(ids.astype(np.int64))[None])
            x = given[0][0]  # [T,C]
            found = head_qk.q(x) @ head_qk.k(x).T / head_qk.dim
    finally:
        hook.remove()
    result: np.ndarray = np.where(np.tri(len(ids), dtype=bool), found.numpy(), np.nan)
    return result


def _encoded(text: str, tokenizer: "Tokenizer") -> tuple[np.ndarray, list[str]]:
    ids = tokenizer.encode(text)
    return ids, [tokenizer.decode([int(i)]) for i in ids]


def _first_sequence(folder: Path) -> tuple[np.ndarray, list[str]]:
    from rwkv_lab import data, runs
    from rwkv_lab.data.tasks import TaskConfig

    task = data.stored_configs(runs.load(folder).config)[0] if runs.is_run(folder) else None
    if not isinstance(task, TaskConfig):
        raise UserError(f'{folder} was trained on a text: give one of its kind with --text "..."')
    ids = task.numbered(np.zeros(1, np.int64), 0, True).rows[0, :-1]
    return ids, [task.word(int(i)) for i in ids]
