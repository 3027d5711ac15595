"""Every model at every precision on every device: loss and gradients of a small batch, evaluation, generated tokens."""

import math

import numpy as np
import pytest
import torch

from rwkv_lab import models
from rwkv_lab.config.registry import names
from rwkv_lab.data.token_cache import Split
from rwkv_lab.inference.sampling import generate
from rwkv_lab.training import device as devices
from rwkv_lab.training.evaluate import evaluate_full

CUDA = pytest.mark.gpu
PLACES = [
    ("cpu", "fp32"),
    ("cpu", "bf16"),
    *(pytest.param("cuda", precision, marks=CUDA) for precision in ("fp32", "tf32", "bf16")),
]
VOCABULARY, CTX_LEN = 19, 24
LOSS_TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 2e-2}
GRADIENT_TOLERANCE = {"fp32": 1e-3, "tf32": 3e-2, "bf16": 0.1}


@pytest.fixture(autouse=True)
def restored():
    threads = torch.get_num_threads()
    yield
    devices.apply(devices.Resolved("cpu", "fp32", "reference", threads))


def make(name: str, head_qk: int, form: str = "sum") -> torch.nn.Module:
    fields = {"head_qk_dim": head_qk, "head_qk": form} if head_qk else {}
    model = models.build(name, vocab_size=VOCABULARY, n_layer=2, n_embd=32, ctx_len=CTX_LEN, seed=1, **fields)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def loss_and_gradient(model: torch.nn.Module, resolved: devices.Resolved) -> tuple[float, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (3, CTX_LEN + 1), generator=generator).to(resolved.device)
    with resolved.autocast():
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.cat([g.detach().float().flatten() for g in gradients]).cpu()


@pytest.mark.parametrize(("where", "precision"), PLACES)
@pytest.mark.parametrize("name", names("model"))
@pytest.mark.parametrize(("head_qk", "form"), [(0, "sum"), (8, "sum"), (8, "max")])
def test_loss_and_gradients_are_those_of_the_cpu(name, where, precision, head_qk, form):
    expected, gradient = loss_and_gradient(make(name, head_qk, form), devices.Resolved("cpu", "fp32", "auto", 1))
    resolved = devices.Resolved(where, precision, "auto", torch.get_num_threads())
    devices.apply(resolved)
    found, g = loss_and_gradient(make(name, head_qk, form).to(where), resolved)
    assert abs(found - expected) < LOSS_TOLERANCE[precision] * expected
    assert float((g - gradient).norm() / gradient.norm()) < GRADIENT_TOLERANCE[precision]


@pytest.mark.parametrize(("where", "precision"), PLACES)
@pytest.mark.parametrize("name", names("model"))
def test_evaluation_and_generation(name, where, precision):
    text = Split(np.arange(200, dtype=np.uint8) ** 2 % VOCABULARY, 1)
    expected = evaluate_full(make(name, 8), text, CTX_LEN, 4, "cpu").loss
    resolved = devices.Resolved(where, precision, "auto", torch.get_num_threads())
    devices.apply(resolved)
    model = make(name, 8).to(where)
    with resolved.autocast():
        found = evaluate_full(model, text, CTX_LEN, 4, where).loss
        generator = torch.Generator(where).manual_seed(0)
        tokens = generate(model, [1, 2], 2 * CTX_LEN, generator=generator)
    assert math.isfinite(found) and abs(found - expected) < LOSS_TOLERANCE[precision] * expected
    assert len(tokens) == 2 * CTX_LEN and all(0 <= token < VOCABULARY for token in tokens)
