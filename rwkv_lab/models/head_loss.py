"""The loss of an output head: cross-entropy with l2_wrap, over all positions at once or a slice of them at a time.

At 8 x 1024 tokens and 50,277 of vocabulary, the logits with what their gradient needs take 6 to 8 GB. Slices, whose
gradients are computed while their logits are there, take what one slice does, by the same three products.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

SLICE_LOGITS = 1 << 25  # most logits of a slice: 128 MB in float32
PULL = 1e-4  # of l2_wrap


def mean_loss(logits: Tensor, targets: Tensor, weights: Tensor | None, l2_wrap: bool) -> Tensor:
    """Mean cross-entropy in nats of logits [B,T,V] at targets [B,T]; l2_wrap adds to its gradient only.

    ``weights`` [B,T], at least 0, make it a weighted mean; positions of weight 0 are left out of l2_wrap too. Targets
    and weights [B,T,J] are J tokens a position with a probability each.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if weights is None:
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return with_l2_wrap(loss, logits) if l2_wrap else loss
    if targets.dim() == 3:
        counted = weights.sum(-1) > 0
        logits, share = logits[counted], weights[counted]  # [N,V], [N,J]
        p = F.log_softmax(logits, dim=-1).gather(-1, targets[counted])  # [N,J]
        loss = -(p * share).sum() / share.sum()
        return with_l2_wrap(loss, logits) if l2_wrap else loss
    counted = weights > 0
    logits, share = logits[counted], weights[counted]  # [N,V], [N]
    losses = F.cross_entropy(logits, targets[counted], reduction="none")
    loss = (losses * share).sum() / share.sum()
    return with_l2_wrap(loss, logits) if l2_wrap else loss


def with_l2_wrap(loss: Tensor, logits: Tensor) -> Tensor:
    """The same loss, whose backward pass also pulls each position's largest logit of logits [...,V] towards zero.

    Adds max * 1e-4/(B T) to d loss / d logits at the arg-max only (Peng, RWKV-4), scaled by the gradient that reaches
    the loss, so that accumulating micro-batches gives what one large batch gives.
    """
    largest = logits.max(dim=-1).values  # [...]
    pull = 0.5 * PULL / largest.numel() * largest.square().sum()
    return loss + (pull - pull.detach())


def sliced_head_loss(x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, l2_wrap: bool) -> Tensor:
    """``mean_loss`` of the logits x @ weight.T, for x [B,T,C] and weight [V,C], a slice of positions at a time."""
    x, targets = x.flatten(0, 1), targets.flatten()  # [N,C], [N]
    total = torch.full((), float(len(x)), device=x.device)
    if weights is not None:
        counted = weights.flatten() > 0
        x, targets, weights = x[counted], targets[counted], weights.flatten()[counted]
        total = weights.sum()
    # d loss / d logits is that of the sum over positions divided by ``total``; l2_wrap's is a mean over positions.
    pull = PULL * total / max(1, len(x)) if l2_wrap else None
    return _SlicedHead.apply(x, weight, targets, weights, pull) / total


def sliced_rows_loss(
    read_out: Callable[[slice], Tensor], targets: Tensor, weights: Tensor | None, l2_wrap: bool, vocab_size: int
) -> Tensor:
    """``mean_loss`` of logits [B,T,V] whose rows ``read_out`` computes: some at a time, and again in backward."""
    B, T = targets.shape
    share = torch.ones_like(targets, dtype=torch.float32) if weights is None else weights
    total, count = share.sum(), (share > 0).sum()

    def part(rows: slice) -> Tensor:
        logits = read_out(rows)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        losses = F.cross_entropy(logits.flatten(0, 1), targets[rows].flatten(), reduction="none")
        loss = (losses * share[rows].flatten()).sum() / total
        if not l2_wrap:
            return loss
        pull = 0.5 * PULL / count * (logits.max(dim=-1).values * (share[rows] > 0)).square().sum()
        return loss + (pull - pull.detach())

    size = max(1, SLICE_LOGITS // (T * vocab_size))
    slices = [slice(first, first + size) for first in range(0, B, size)]
    return torch.stack([checkpoint(part, rows, use_reentrant=False, preserve_rng_state=False) for rows in slices]).sum()


class _SlicedHead(torch.autograd.Function):
    """Sum of weighted cross-entropies of x @ weight.T; the gradients are computed on the way.

    ``pull``, a scalar, adds pull * max to d sum / d logits at each position's arg-max. Sums over slices are taken in
    float32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, shares: Tensor | None, pull: Tensor | None
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        exact = torch.promote_types(dtype, torch.float32)
        size = max(1, SLICE_LOGITS // len(weight))
        with torch.autocast(kind, enabled=False):
            x_, w_ = x.to(dtype), weight.to(dtype)
            gx = torch.empty_like(x_)
            gw = torch.zeros_like(weight, dtype=exact)
            total = x.new_zeros((), dtype=exact)
            for first in range(0, len(x), size):
                part = slice(first, first + size)
                target = targets[part, None]  # [n,1]
                share = None if shares is None else shares[part, None].to(exact)
                logits = (x_[part] @ w_.t()).to(exact)  # [n,V]
                norm = logits.logsumexp(-1, keepdim=True)
                losses = norm - logits.gather(1, target)
                largest, where = logits.max(-1, keepdim=True) if pull is not None else (norm, target)
                # From here on logits is the gradient by them: softmax minus one at the target.
                logits.sub_(norm).exp_().scatter_add_(1, target, torch.full_like(norm, -1.0))
                if share is not None:
                    losses = losses * share
                    logits.mul_(share)
                if pull is not None:
                    logits.scatter_add_(1, where, pull.to(exact) * largest)
                total += losses.sum()
                slope = logits.to(dtype)
                del logits
                torch.mm(slope, w_, out=gx[part])
                gw += slope.t() @ x_[part]
        ctx.save_for_backward(gx, gw)
        ctx.dtypes = x.dtype, weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        gx, gw = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        return (gx * g).to(x_dtype), (gw * g).to(weight_dtype), None, None, None
