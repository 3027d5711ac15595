"""Token shift (Peng 2021, RWKV-LM): the previous token mixed into the input of a sublayer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.model_fields import Shift


def previous(x: Tensor, last: Tensor | None = None) -> Tensor:
    """x [B,T,C] one step later: [B,T,C] with ``last`` [B,C] (None: zeros) at t = 0."""
    if last is None:
        return F.pad(x, (0, 0, 1, -1))
    return torch.cat((last.unsqueeze(1), x[:, :-1]), dim=1)


class TokenShift(nn.Module):
    """Mixes the previous token into the input of a sublayer (Peng 2021, RWKV-LM).

    shift  none | half: the first half of the channels from the previous token | learned: x m + x_prev (1 - m) | a
           ``Shift`` of ``ModelConfig.shift(layer)``, which may give each role a share of channels of its own
    roles  what the mixed inputs are for, such as "kvr": with a learned shift each has its own m, named time_mix_<role>,
           unless ``shared``, where all take the one time_mix

    Raises UserError for another word, and for a shared m that is to begin at different shares.
    """

    def __init__(self, shift: Shift | str, n_embd: int, roles: str, shared: bool = False):
        super().__init__()
        if isinstance(shift, str):
            shift = Shift.named(shift)
        self.learned = shift.learned
        self.own_start = shift.own_start
        self.roles = roles
        self.shared = shared
        self.n_shifted = [int(shift.shares.get(role, shift.share) * n_embd + 1e-6) for role in roles]
        if shared and self.learned and len(set(self.n_shifted)) > 1:
            raise UserError(
                "model.shift_roles gives roles that share one learned shift different shares: use model.shift_share"
            )
        names = [] if not self.learned else ["time_mix"] if shared else [f"time_mix_{role}" for role in roles]
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.empty(n_embd)))

    def forward(self, x: Tensor, last: Tensor | None = None) -> tuple[Tensor, ...]:
        """x [B,T,C], the input before it [B,C] (None: zeros) -> one [B,T,C] per role."""
        if self.learned:
            mixed = LearnedShift.apply(x, last, *(share.to(x.dtype) for share in self.parameters()))
            return mixed * len(self.roles) if self.shared else mixed
        by_count = {n: shifted(x, last, n) for n in set(self.n_shifted)}
        return tuple(by_count[n] for n in self.n_shifted)

    def extra_repr(self) -> str:
        return f"{'learned' if self.learned else self.n_shifted}, {self.roles}"


def shifted(x: Tensor, last: Tensor | None, n: int) -> Tensor:
    """x [B,T,C] with its first ``n`` channels one step later; the input before it is ``last`` [B,C] (None: zeros)."""
    if n == 0:
        return x
    late = previous(x[..., :n], None if last is None else last[:, :n])
    return late if n == x.shape[-1] else torch.cat((late, x[..., n:]), dim=-1)


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
