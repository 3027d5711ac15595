"""Restoring an optimizer: every state tensor lies where torch's own load_state_dict puts it, and training goes on."""

import pytest
import torch
from torch import nn

from rwkv_lab.training import checkpoint
from rwkv_lab.training.checkpoint import Progress, Saver

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")

DEVICES = ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.gpu)]
OPTIMIZERS = [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop]
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def make(kind: type, device: str, **options) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(device)
    # In another order than the model's, as groups of weight decay are.
    groups = [{"params": [model[1].weight, model[0].weight]}, {"params": [model[1].bias, model[0].bias]}]
    return model, kind(groups, lr=0.1, **options)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    model(x.to(next(model.parameters()).device)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("fused", [None, True, False])
def test_state_lies_where_torch_puts_it(kind, device, fused):
    options = {} if kind not in FUSED else {"fused": fused}
    options |= {"momentum": 0.9} if kind is torch.optim.SGD else {}
    if fused and (kind not in FUSED or device == "meta"):
        # Whether the device can is asked when the optimizer is made; where state goes depends on the group's flag.
        options.pop("fused", None)
    model, optimizer = make(kind, "cpu", **options)
    update(model, optimizer, 1)
    saved = checkpoint.tensors_of(model, [optimizer])

    found, expected = (make(kind, device, **options) for _ in range(2))
    if fused and device == "meta":
        for _, each in (found, expected):
            for group in each.param_groups:
                group["fused"] = True
    content = optimizer.state_dict()
    content["param_groups"] = expected[1].state_dict()["param_groups"]
    expected[1].load_state_dict(content)
    checkpoint.restore(saved, found[0], [found[1]])

    places = [
        [{key: (x.device, x.dtype) for key, x in each.state[p].items()} for g in each.param_groups for p in g["params"]]
        for each in (found[1], expected[1])
    ]
    assert places[0] == places[1] and any(places[0])
    if device != "meta":
        update(*found, 2)
        update(model, optimizer, 2)
        for x, e in zip(found[0].parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(x.cpu(), e, rtol=0 if device == "cpu" else 1e-6, atol=0)


def test_the_tensors_read_stay_as_they_were():
    model, optimizer = make(torch.optim.Adam, "cpu")
    update(model, optimizer, 1)
    saved = {name: value.clone() for name, value in checkpoint.tensors_of(model, [optimizer]).items()}
    before = {name: value.clone() for name, value in saved.items()}
    checkpoint.restore(saved, model, [optimizer])
    update(model, optimizer, 2)
    assert all(torch.equal(saved[name], before[name]) for name in before)


def test_a_checkpoint_is_of_the_moment_it_was_begun(tmp_path):
    """Later updates do not reach it, nor does the step; the next waits for it, and the end for the last."""
    tensors, progress = {"model.x": torch.zeros(1000)}, Progress(step=1)
    with Saver(tmp_path / "checkpoints") as saver:
        for step in (1, 2):
            progress.step = step
            tensors["model.x"].fill_(step)
            saver.begin(progress, tensors)
        progress.step = 9
        tensors["model.x"].fill_(9.0)
    assert checkpoint.kept_steps(tmp_path / "checkpoints") == [1, 2]
    found = checkpoint.newest(tmp_path / "checkpoints", pytest.fail)
    assert found is not None
    assert found.progress.step == 2
    assert found.tensors(nn.Linear(1, 1))["model.x"].eq(2.0).all()


@pytest.mark.parametrize("later", ["begin", "end"])
def test_a_checkpoint_that_cannot_be_written_is_an_error_of_the_next_call(tmp_path, monkeypatch, later):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    saver = Saver(tmp_path / "checkpoints")
    saver.begin(Progress(step=1), {})
    with pytest.raises(OSError, match="No space"):
        saver.begin(Progress(step=2), {}) if later == "begin" else saver.__exit__(None)


def test_no_copy_where_memory_is_short(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "available_bytes", lambda: 100.0)
    saver = Saver(tmp_path / "checkpoints")
    saver.begin(Progress(step=1), {"model.x": torch.zeros(1000)})
    assert checkpoint.kept_steps(tmp_path / "checkpoints") == [1]
