"""The memory a run needs against the peak of live tensors by torch's profiler; settings that fit; plans of recipes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from rwkv_lab import models
from rwkv_lab.cli import summary
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config
from rwkv_lab.models import head_loss
from rwkv_lab.models.factory import skeleton
from rwkv_lab.training import device
from rwkv_lab.training.memory import RESERVED, Planner
from tests.composing import checked, hydra_context

VOCAB = 300
SIZE = ("model.n_layer=3", "model.n_embd=64", "model.ctx_len=64", "trainer.batch_size=8")


@pytest.fixture(scope="module", autouse=True)
def context():
    with hydra_context():
        yield


def planner(config: Config, vocab_size: int = VOCAB) -> Planner:
    return Planner(config, dict(skeleton(config.model, vocab_size).named_parameters()), vocab_size)


def measured_peak(config: Config, tokens: torch.Tensor) -> int:
    """The most bytes alive in an update beside those from before it, by the allocator's own events."""
    model = models.construct(config.model, VOCAB)
    resolved = device.Resolved("cpu", config.trainer.precision, "native", 1)
    device.dress(model, config.trainer, resolved)

    def update() -> None:
        with resolved.autocast():
            loss = model.loss(tokens, tokens)
        loss.backward()
        model.zero_grad(set_to_none=True)

    update()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        update()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("name", "precision"), [("rwkv_v4", "bf16"), ("mha_rotary", "fp32")])
def test_the_estimate_is_what_an_update_takes(monkeypatch, name, precision, again):
    monkeypatch.setattr(head_loss, "SLICE_LOGITS", 200 * VOCAB)
    words = (f"model={name}", *SIZE, f"trainer.precision={precision}", f"trainer.activation_checkpointing={again}")
    config = checked(*words)
    found = planner(config).need(config.trainer)
    beside = found.peak - found.weights - found.optimizer
    peak = measured_peak(config, torch.zeros((8, 64), dtype=torch.int64))
    assert beside == pytest.approx(peak, rel=0.1)
    assert all(size > 0 for size in found.parts.values())


def test_shares_take_less_and_activations_computed_again_too():
    config = checked(*SIZE)
    plan, trainer = planner(config), config.trainer
    of = {s: plan.need(dataclasses.replace(trainer, strategy=s), 8) for s in ("ddp", "fsdp")}
    assert of["fsdp"].optimizer == of["ddp"].optimizer / 8 and of["fsdp"].peak < of["ddp"].peak
    assert plan.need(dataclasses.replace(trainer, activation_checkpointing=True)).peak < plan.need(trainer).peak


def test_what_is_proposed_fits_and_shares_the_batch():
    plan = planner(checked(*SIZE, "trainer.batch_size=9"))
    whole = plan.need(plan.config.trainer)
    before = float("inf")
    for size in (10 * whole.peak, 0.8 * whole.peak, 0.4 * whole.peak):
        found = plan.fitting(1, size)
        assert found is not None
        trainer, memory = found
        assert memory.peak <= (1 - RESERVED) * size and memory.peak <= before
        assert trainer.batch_size == 9 and trainer.batch_size % trainer.accumulate == 0
        before = memory.peak
    assert plan.fitting(1, whole.weights) is None
    shared = plan.fitting(4, 10 * whole.peak)
    assert shared is not None and shared[0].batch_size == 12


RECIPES = {  # study: (words, vocabulary, parameters)
    "pile_1b5": ((), 50277, 1_515_106_304),
    "enwik8_27m": ((), 6064, None),
    "arch_comparison_paper": (("model=mha_pro",), 98, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("study", RECIPES)
def test_plans_of_the_recipes(study: str):
    words, vocab_size, parameters = RECIPES[study]
    text = "\n".join(summary.plan(checked(f"experiments={study}", *words), vocab_size))
    assert parameters is None or f"{parameters:,}" in text
    for name, *_ in summary.CLUSTERS:
        (row,) = (line for line in text.splitlines() if line.startswith(name))
        assert "trainer.batch_size" in row
    for part in ("weights", "gradients", "optimizer", "activations", "loss", "most at once", "FLOPs per token"):
        assert part in text


def test_a_plan_without_its_corpus(capsys, tmp_path: Path):
    words = ("data=binidx", f"data.path={tmp_path / 'none'}", "tokenizer=ids", *SIZE)
    summary.dry_run(checked(*words, "tokenizer.vocab_size=300"))
    assert "none" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"data\.path"):
        summary.dry_run(checked(*words))
