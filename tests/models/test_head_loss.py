"""The loss by slices of positions: the loss and the gradients of all logits at once, to rounding."""

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.models import head_loss
from rwkv_lab.models.lm import LM

V, B, T = 23, 3, 8


def filled(model: LM) -> LM:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def gradients(model: LM, weighted: bool, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    idx, targets = torch.randint(0, V, (2, B, T), generator=generator)
    weights = (torch.rand(B, T, generator=generator) - 0.4).clamp(min=0) if weighted else None
    if weights is not None:
        weights[1] = 0  # a slice of rows in which nothing counts
    loss = model.loss(idx, targets, weights)
    return [loss.detach(), *torch.autograd.grad(loss * scale, list(model.parameters()))]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2_wrap", [False, True])
@pytest.mark.parametrize("head_qk_dim", [0, 4])
@pytest.mark.parametrize("logits", [1, 5 * V, T * V, B * T * V - 1])
def test_slices_give_what_the_whole_gives(monkeypatch, logits, head_qk_dim, l2_wrap, weighted):
    fields = {"n_layer": 1, "n_embd": 8, "ctx_len": T, "head_qk_dim": head_qk_dim, "l2_wrap": l2_wrap}
    model = filled(models.build("rwkv_v1", vocab_size=V, **fields)).double()  # v1 has time_out
    expected = gradients(model, weighted, 3.0)
    monkeypatch.setattr(head_loss, "SLICE_LOGITS", logits)
    for found, wanted in zip(gradients(model, weighted, 3.0), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_slices_under_autocast(monkeypatch, dtype):
    model = filled(models.build("rwkv_v4", vocab_size=V, n_layer=1, n_embd=8, ctx_len=T, l2_wrap=True))
    with torch.autocast("cpu", dtype=dtype):
        expected = gradients(model, False)
        monkeypatch.setattr(head_loss, "SLICE_LOGITS", 4 * V)
        found = gradients(model, False)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == torch.float32
        # Sums that nearly cancel keep few digits in 16 bits.
        assert (one - other).norm() <= 0.1 * other.norm() + 1e-3
