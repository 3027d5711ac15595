"""Head-QK (Peng 2021, RWKV-LM): attention from the output head to earlier tokens, which copies names."""

import torch
from torch import Tensor, nn

from rwkv_lab.models.blocks.attention import causal_window


class HeadQK(nn.Module):
    """Attention from the output head to earlier tokens: it adds to the logit of each token that occurred.

        c[t,u] = q_t . k_u / D for u <= t;   logits[t, idx_u] += c[t,u]

    The amounts of a token that occurs several times are summed; form="max" takes the largest. Only the last ``window``
    positions are seen, so that a recurrent state stays bounded (Peng 2021, RWKV-LM).
    """

    def __init__(self, n_embd: int, dim: int, window: int, form: str, bias: bool):
        super().__init__()
        self.q = nn.Linear(n_embd, dim, bias=bias)
        self.k = nn.Linear(n_embd, dim, bias=bias)
        self.dim = dim
        self.window = window
        self.form = form

    def forward(
        self, logits: Tensor, x: Tensor, idx: Tensor, history: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Adds to logits [B,T,V] from x [B,T,C], tokens idx [B,T] and the history of what came before.

        The logits may be those of the last positions alone.
        history: keys [B,P,D] and tokens [B,P] of the last P positions, None at the start. Returns the logits and the
        history after this chunk, cut to the window. Writes into the given logits.
        """
        B, T, _ = logits.shape
        q, k = self.q(x[:, -T:]), self.k(x)  # [B,T,D]
        if history is not None:
            k = torch.cat((history[0].to(k.dtype), k), dim=1)
            idx = torch.cat((history[1], idx), dim=1)
        U = k.shape[1]  # history and chunk
        c = q @ k.transpose(1, 2) / self.dim  # [B,T,U]
        tokens = idx.unsqueeze(1).expand(B, T, U)
        seen = causal_window(T, U, self.window, x.device)
        if self.form == "sum":
            logits = logits.scatter_add_(2, tokens, c.masked_fill(~seen, 0.0).to(logits.dtype))
        else:
            c = c.masked_fill(~seen, -torch.inf).to(logits.dtype)
            best = torch.full_like(logits, -torch.inf).scatter_reduce(2, tokens, c, "amax")
            logits = logits.add_(best.masked_fill(best == -torch.inf, 0.0))
        return logits, (k[:, -self.window :], idx[:, -self.window :])
