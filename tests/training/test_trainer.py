"""The loop in this process, on a tiny model: accumulation, resuming, late betas, decay groups, non-finite numbers."""

import functools

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.config import derived
from rwkv_lab.runs import read_metrics
from rwkv_lab.runs.store import claim
from rwkv_lab.training import run
from rwkv_lab.training.distributed.world import World
from rwkv_lab.training.job import config_text
from rwkv_lab.training.metrics import MetricsLog
from rwkv_lab.training.optim.adam import AdamConfig, AdamWConfig
from rwkv_lab.training.signals import Stopped
from rwkv_lab.training.trainer import Listeners, NotFinite, Training, train
from tests.composing import checked, hydra_context

TINY = ("model.n_layer=1", "model.n_embd=16", "model.ctx_len=16", "trainer.threads=1", "tracker=none", "debug=smoke")
IGNORED = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module", autouse=True)
def context():
    with hydra_context():
        yield


def start(folder, *overrides: str) -> Training:
    config = checked(*TINY, *overrides)
    held = claim(folder, rerun=False)
    try:
        return run.prepare(config, held, list(overrides), config_text(config), World())
    finally:
        held.release()


def finish(training: Training, stop_after: int | None = None) -> None:
    metrics = MetricsLog(training.folder / "metrics.csv", training.progress.step)

    def stepped(progress, loss, lr):
        if stop_after is not None and progress.step == stop_after:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(training, metrics, Listeners(lambda row: None, stepped))
    finally:
        metrics.close()


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.model.state_dict().items()}


@pytest.mark.parametrize("model", ["rwkv_v4", "mha_rotary"])
def test_accumulation_equals_one_batch(tmp_path, model):
    whole = start(tmp_path / "whole", f"model={model}", "trainer.steps=3", "trainer.batch_size=4")
    parts = start(
        tmp_path / "parts", f"model={model}", "trainer.steps=3", "trainer.batch_size=4", "trainer.accumulate=4"
    )
    finish(whole)
    finish(parts)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["rwkv_v4", "mha_rotary"])
@pytest.mark.parametrize("stopped_at", [1, 3, 5])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, model, stopped_at):
    settings = (f"model={model}", "trainer.steps=7", "optimizer.betas_late=[0.9,0.999]", "optimizer.betas_late_step=4")
    whole = start(tmp_path / "whole", *settings)
    finish(whole)
    first = start(tmp_path / "parts", *settings)
    with pytest.raises(Stopped):
        finish(first, stop_after=stopped_at)
    second = start(tmp_path / "parts", *settings)
    assert second.progress.step == stopped_at
    finish(second)
    for name, value in weights(whole).items():
        assert torch.equal(weights(second)[name], value), name
    one, other = (read_metrics(tmp_path / name / "metrics.csv") for name in ("whole", "parts"))
    for column in one.keys() - set(IGNORED):
        assert one[column].tobytes() == other[column].tobytes(), column


@pytest.mark.parametrize("trigger", ["weight", "lr"])
def test_a_number_that_is_none_stops_the_run_before_it_spreads(tmp_path, trigger):
    training = start(tmp_path / "run", "trainer.steps=4")
    if trigger == "weight":
        with torch.no_grad():
            next(training.model.parameters()).view(-1)[0] = float("nan")
    else:
        training.lr = functools.partial(lambda step: float("inf") if step == 1 else 1e-3)
    before = weights(training) if trigger == "weight" else None
    with pytest.raises(NotFinite, match=r"at step \d"):
        finish(training)
    if before:
        assert all(
            torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in weights(training).items()
        )


def test_late_betas_begin_at_their_step():
    config = AdamConfig(betas=[0.9, 0.99], betas_late=[0.8, 0.999], betas_late_step=3)
    optimizer = config.build(models.build("rwkv_v4", vocab_size=8, n_layer=1, n_embd=8, ctx_len=4))
    seen = []
    for step in range(5):
        config.set_step(optimizer, step, lr=1e-3 * step)
        seen.append(optimizer.param_groups[0]["betas"])
        assert all(group["lr"] == 1e-3 * step for group in optimizer.param_groups)
    assert seen == [(0.9, 0.99)] * 3 + [(0.8, 0.999)] * 2


def test_weight_decay_reaches_linear_weights_only():
    model = models.build("mha_rotary", vocab_size=8, n_layer=1, n_embd=8, ctx_len=4, n_head=2)
    optimizer = AdamWConfig(weight_decay=0.1).build(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {
        names[id(parameter)]
        for group in optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    assert decayed and all(name.endswith(".weight") and "head" not in name and "ln" not in name for name in decayed)
    assert len(decayed) < len(names)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


@pytest.mark.parametrize(
    "overrides, steps",
    [(["trainer.steps=7"], 7), (["trainer.steps=null", "trainer.tokens=129", "trainer.batch_size=4"], 3)],
)
def test_length_in_steps_or_tokens(overrides, steps):
    assert derived.total_steps(checked(*TINY, *overrides)) == steps
