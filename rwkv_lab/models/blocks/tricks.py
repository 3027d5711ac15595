"""The tricks any architecture may use: token shift, head-QK, L2Wrap, tiny attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def previous(x: Tensor, last: Tensor | None = None) -> Tensor:
    """x [B,T,C] one step later: [B,T,C] with `last` [B,C] (None: zeros) at t = 0."""
    if last is None:
        return F.pad(x, (0, 0, 1, -1))
    return torch.cat((last.unsqueeze(1), x[:, :-1]), dim=1)


class TokenShift(nn.Module):
    """Mixes the previous token into the input of a sublayer (Peng 2021, RWKV-LM).

    kind   none: x | half: the first half of the channels from the previous token | learned: x m + x_prev (1 - m)
    roles  what the mixed inputs are for, such as "kvr": with a learned shift each has its own m, named time_mix_<role>,
           unless `shared`, where all take the one time_mix
    """

    def __init__(self, kind: str, n_embd: int, roles: str, shared: bool = False):
        super().__init__()
        self.kind = kind
        self.roles = roles
        self.shared = shared
        self.n_shifted = n_embd // 2  # of half
        names = [] if kind != "learned" else ["time_mix"] if shared else [f"time_mix_{role}" for role in roles]
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.empty(n_embd)))

    def forward(self, x: Tensor, last: Tensor | None = None) -> tuple[Tensor, ...]:
        """x [B,T,C], the input before it [B,C] (None: zeros) -> one [B,T,C] per role."""
        if self.kind == "learned":
            mixed = LearnedShift.apply(x, last, *(share.to(x.dtype) for share in self.parameters()))
            return mixed * len(self.roles) if self.shared else mixed
        if self.kind == "half":
            last_half = None if last is None else last[:, : self.n_shifted]
            x = torch.cat((previous(x[..., : self.n_shifted], last_half), x[..., self.n_shifted :]), dim=-1)
        return (x,) * len(self.roles)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.roles}"


class LearnedShift(torch.autograd.Function):
    """x m + x_prev (1 - m) for several m [C]: x [B,T,C], the input before it [B,C] or None -> one [B,T,C] per m.

    The gradients by hand, because their sums over the several uses of x and x_prev take half of the passes that way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, last: Tensor | None, *shares: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, last, *shares)
        x_prev = previous(x, last)
        return tuple(torch.lerp(x_prev, x, m) for m in shares)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, last, *shares = ctx.saved_tensors
        difference = x - previous(x, last)
        g_shares = [(g * difference).sum((0, 1)) for g in grads]
        gx, g_both = grads[0] * shares[0], grads[0].clone()
        for g, m in zip(grads[1:], shares[1:], strict=True):
            gx.addcmul_(g, m)
            g_both += g
        g_prev = g_both.sub_(gx)
        gx[:, :-1] += g_prev[:, 1:]
        return gx, None if last is None else g_prev[:, 0], *g_shares


class HeadQK(nn.Module):
    """Attention from the output head to earlier tokens: it adds to the logit of each token that occurred.

        c[t,u] = q_t . k_u / D for u <= t;   logits[t, idx_u] += c[t,u]

    Where a token occurs several times its amounts are summed, or with form="max" the largest counts. Only the last
    `window` positions are seen, so that a recurrent state stays bounded (Peng 2021, RWKV-LM).
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

        history: keys [B,P,D] and tokens [B,P] of the last P positions, None at the start. Returns the logits and the
        history after this chunk, cut to the window. Writes into the given logits.
        """
        B, T, _ = x.shape
        q, k = self.q(x), self.k(x)  # [B,T,D]
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


def causal_window(T: int, U: int, window: int, device: torch.device) -> Tensor:
    """[T,U] true where query t, which is position U-T+t, sees position u: itself or fewer than `window` before it."""
    distance = torch.arange(U - T, U, device=device).unsqueeze(1) - torch.arange(U, device=device)
    return (distance >= 0) & (distance < window)


def l2_wrap(loss: Tensor, logits: Tensor) -> Tensor:
    """The same loss, whose backward pass also pulls each position's largest logit of logits [B,T,V] towards zero.

    Adds max * 1e-4/(B T) to d loss / d logits at the arg-max only (Peng, RWKV-4), scaled by the gradient that reaches
    the loss, so that accumulating micro-batches gives what one large batch gives.
    """
    largest = logits.max(dim=-1).values  # [B,T]
    pull = 0.5e-4 / largest.numel() * largest.square().sum()
    return loss + (pull - pull.detach())


class TinyAttention(nn.Module):
    """Causal attention of a small width on the side of a time mix (Peng 2021, RWKV-LM v1)."""

    def __init__(self, n_embd: int, width: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(n_embd, 3 * width)
        self.out = nn.Linear(width, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,C] -> [B,T,C]."""
        q, k, v = (split_heads(part, self.n_head) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """[B,T,H*S] -> [B,H,T,S]."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B,H,T,S] -> [B,T,H*S]."""
    return x.transpose(1, 2).flatten(2)
