"""Requirements on every architecture, whoever adds it."""

import dataclasses
from typing import get_args, get_type_hints

import torch

from rwkv_lab import models
from rwkv_lab.config.fields import choices
from rwkv_lab.config.registry import get
from rwkv_lab.inference.recurrent import RecurrentModel


def options(name):
    """Every value of every switch of a model, one at a time."""
    owner = get("model", name)
    hints = get_type_hints(owner)
    for field in dataclasses.fields(owner):
        if field.name in ("init_vocab", "bidirectional"):
            continue
        values = choices(hints[field.name])
        if bool in (hints[field.name], *get_args(hints[field.name])):
            values = [True, False]
        if hints[field.name] is int and field.default == 0:
            values = [4]
        for value in values:
            more = {
                "head_qk": {"head_qk_dim": 4},
                "token_shift": {"shift_roles": {"k": 0.3}} if value == "roles" else {},
            }
            if value is True and field.name == "positions_2d":
                more = {"positions_2d": {"image_size": 2, "image_levels": 2}}
            yield {field.name: value} | more.get(field.name, {})


def require_every_parameter_moves(name, option):
    """After five updates on a small batch no parameter is where it started."""
    pre = {"norm": "pre"} if option.get("emb_norm") is False else {}
    model = models.build(name, vocab_size=7, n_layer=2, n_embd=8, ctx_len=6, **option, **pre)
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    idx = torch.randint(0, 7, (4, 7), generator=torch.Generator().manual_seed(1))
    for _ in range(5):
        optimizer.zero_grad()
        model.loss(idx[:, :-1], idx[:, 1:]).backward()
        optimizer.step()
    assert [key for key, parameter in model.named_parameters() if torch.equal(parameter, before[key])] == []


def moved(name, **fields):
    """A small model in float64, every parameter away from its initial value."""
    known = {field.name for field in dataclasses.fields(get("model", name))}
    fields = {key: value for key, value in fields.items() if key in known}
    model = models.build(name, vocab_size=11, **({"n_layer": 2, "n_embd": 12, "ctx_len": 8} | fields)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def tokens(B, T, V=11):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(2))


def require_recurrent_equals_parallel(model, T):
    """Token by token and in chunks of several sizes, the logits are those of all T tokens at once."""
    recurrent, idx = RecurrentModel(model), tokens(3, T)
    whole = model(idx)
    state, steps = None, []
    for token in idx.unbind(1):
        logits, state = recurrent.step(token, state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=0, atol=1e-10)
    for first in (1, 3, T - 1):
        state, parts = None, []
        for chunk in idx.split((first, T - first), dim=1):
            logits, state = recurrent.prefill(chunk, state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)
