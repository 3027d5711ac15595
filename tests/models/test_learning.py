"""Each architecture learns real text: the language reference that comes with Python, character by character."""

import pydoc_data.topics

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.config.registry import names

STEPS, B, T = 100, 8, 64

# measured: nats per character over the last 20 steps, to which 0.1 is allowed; character frequencies alone give 3.26
MEASURED = {
    "rwkv_v1": 2.07,
    "rwkv_v2": 1.98,
    "rwkv_v3": 2.03,
    "rwkv_v4": 2.03,
    "mha_rotary": 2.77,
    "mha_shift": 2.59,
    "mha_pro": 2.62,
}


def text() -> torch.Tensor:
    joined = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    return torch.tensor([byte for byte in joined.encode() if byte < 128])


@pytest.mark.slow
@pytest.mark.parametrize("name", names("model"))
def test_learning(name):
    tokens = text()
    model = models.build(name, vocab_size=128, n_layer=2, n_embd=64, ctx_len=T, head_qk_dim=0, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(STEPS):
        starts = torch.randint(0, len(tokens) - T - 1, (B, 1), generator=generator)
        batch = tokens[starts + torch.arange(T + 1)]
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 10) * (1.0 - 0.9 * step / STEPS)
        loss = model.loss(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    reached = sum(losses[-20:]) / 20
    assert reached < MEASURED[name] + 0.1, reached
