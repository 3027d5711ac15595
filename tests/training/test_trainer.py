"""The loop in this process, on a tiny model: accumulation, resuming, late betas, decay groups, non-finite numbers."""

import dataclasses
import functools
import os
import signal

import pytest
import torch
from omegaconf import OmegaConf

from rwkv_lab import models
from rwkv_lab.config import check, derived, registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import read_metrics
from rwkv_lab.runs.store import acquire_run
from rwkv_lab.training import device, session, trainer
from rwkv_lab.training.context import RunContext
from rwkv_lab.training.distributed.world import World
from rwkv_lab.training.loader import Loader
from rwkv_lab.training.metrics import MetricsLog
from rwkv_lab.training.optim import block_matrices
from rwkv_lab.training.optim.adam import AdamConfig, AdamWConfig
from rwkv_lab.training.optim.muon import MuonConfig
from rwkv_lab.training.trainer import NotFinite, Training, train
from rwkv_lab.util import console
from rwkv_lab.util.signals import Stopped
from tests.composing import checked, hydra_context

TINY = ("model.n_layer=1", "model.n_embd=16", "model.ctx_len=16", "trainer.threads=1", "tracker=none", "debug=smoke")
IGNORED = ("seconds", "tokens_per_second", "mfu")


@pytest.fixture(scope="module", autouse=True)
def context():
    with hydra_context():
        yield


def start(folder, *overrides: str) -> Training:
    config = checked(*TINY, *overrides)
    held = acquire_run(folder, rerun=False)
    try:
        return session.prepare(RunContext(config, held, list(overrides)), World())
    finally:
        held.release()


def finish(training: Training, stop_after: int | None = None) -> None:
    metrics = MetricsLog(training.folder / "metrics.csv", training.progress.step)

    class Live(console.Progress):
        def update(self, step, tokens, loss, lr):
            if step == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(training, metrics, Live(training.total, training.progress.step))
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


@pytest.mark.parametrize("optimizer", registry.names("optimizer"))
def test_every_optimizer_learns_and_resumes_bit_for_bit(tmp_path, optimizer):
    settings = (f"optimizer={optimizer}", "trainer.steps=6", "trainer.batch_size=2", "trainer.overfit=true")
    whole = start(tmp_path / "whole", *settings)
    finish(whole)
    with pytest.raises(Stopped):
        finish(start(tmp_path / "parts", *settings), stop_after=3)
    second = start(tmp_path / "parts", *settings)
    finish(second)
    for name, value in weights(whole).items():
        assert torch.equal(weights(second)[name], value), name
    losses = read_metrics(tmp_path / "parts" / "metrics.csv")["train_loss"]
    assert losses[-1] < losses[0]
    held = sum(
        value.numel() * value.element_size()
        for inner in second.optimizers
        for state in inner.state.values()
        for key, value in state.items()
        if key != "step"
    )
    assert held == second.config.optimizer.state_bytes(dict(second.model.named_parameters()))


@pytest.mark.parametrize("trigger", ["weight", "lr"])
def test_a_number_that_is_none_stops_the_run_before_it_spreads(tmp_path, trigger):
    training = start(tmp_path / "run", "trainer.steps=4")
    if trigger == "weight":
        with torch.no_grad():
            training.model.head.weight[0, 0] = float("nan")
    else:
        training.lr = functools.partial(lambda step: float("inf") if step == 1 else 1e-3)
    before = weights(training) if trigger == "weight" else None
    with pytest.raises(NotFinite, match=r"at step \d"):
        finish(training)
    if before:
        assert all(
            torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in weights(training).items()
        )


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_stopped_between_rows_after_a_nan_nothing_is_saved(tmp_path, monkeypatch, where):
    """As on a GPU, whose numbers are looked at for a row only."""
    settings = ("trainer.steps=40", "trainer.log_every=20", "trainer.eval_every=0", "trainer.checkpoint_every=4")
    training = start(tmp_path / "run", *settings)
    training.resolved = dataclasses.replace(training.resolved, device="cpu:0")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    update = trainer.update

    def spoiled(training, module, step):
        loss, norm = update(training, module, step)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            if where == "weights":
                training.lr = lambda step: 1e-3
                for group in training.optimizers[0].param_groups:
                    group["lr"] = float("nan")
        return (loss * float("nan") if where == "loss" and step == 5 else loss), norm

    monkeypatch.setattr(trainer, "update", spoiled)
    with pytest.raises(NotFinite, match="at step 6"):
        finish(training)
    assert [path.stem for path in (tmp_path / "run" / "checkpoints").glob("*.json")] == ["step-000000004"]


def test_late_betas_begin_at_their_step():
    config = AdamConfig(betas=[0.9, 0.99], betas_late=[0.8, 0.999], betas_late_step=3)
    model = models.build("rwkv_v4", vocab_size=8, n_layer=1, n_embd=8, ctx_len=4)
    optimizers = config.build(dict(model.named_parameters()))
    seen = []
    for step in range(5):
        config.set_lr(optimizers, step, lr=1e-3 * step)
        seen.append(optimizers[0].param_groups[0]["betas"])
        assert all(group["lr"] == 1e-3 * step for group in optimizers[0].param_groups)
    assert seen == [(0.9, 0.99)] * 3 + [(0.8, 0.999)] * 2


def test_weight_decay_reaches_linear_weights_only():
    model = models.build("mha_rotary", vocab_size=8, n_layer=1, n_embd=8, ctx_len=4, n_head=2)
    (optimizer,) = AdamWConfig(weight_decay=0.1).build(dict(model.named_parameters()))
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


@pytest.mark.parametrize("model", registry.names("model"))
def test_block_matrices_are_the_linear_weights_of_the_blocks(model):
    built = models.build(model, vocab_size=8, n_layer=1, n_embd=8, ctx_len=4, head_qk_dim=4)
    linear = {
        f"{name}.weight"
        for name, module in built.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("head")
    }
    assert set(block_matrices(dict(built.named_parameters()))) == linear


def test_muon_takes_matrices_and_adam_the_rest_at_its_own_rate():
    config = MuonConfig(adam_lr_scale=0.5)
    model = models.build("rwkv_v4", vocab_size=8, n_layer=1, n_embd=8, ctx_len=4)
    muon, adam = optimizers = config.build(dict(model.named_parameters()))
    config.set_lr(optimizers, 0, 1e-2)
    assert (muon.param_groups[0]["lr"], adam.param_groups[0]["lr"]) == (1e-2, 5e-3)
    assert all(p.ndim == 2 for p in muon.param_groups[0]["params"])
    assert sum(len(each.param_groups[0]["params"]) for each in optimizers) == len(list(model.parameters()))


@pytest.mark.parametrize(
    "overrides, steps",
    [(["trainer.steps=7"], 7), (["trainer.steps=null", "trainer.tokens=129", "trainer.batch_size=4"], 3)],
)
def test_length_in_steps_or_tokens(overrides, steps):
    assert derived.total_steps(checked(*TINY, *overrides)) == steps


def scaled_too_far(training: Training) -> Training:
    """The run with a loss scale at which the first gradients are infinite."""
    if training.progress.step == 0:
        state = {"scaler.scale": torch.tensor(2.0**26), "scaler.growth_tracker": torch.tensor(0.0)}
        training.scaler.restore(state, 0)
    return training


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_fp16_skips_counts_and_resumes_bit_for_bit(tmp_path, optimizer):
    settings = ("trainer.precision=fp16", f"optimizer={optimizer}", "trainer.steps=24", "trainer.overfit=true")
    whole = scaled_too_far(start(tmp_path / "whole", *settings))
    finish(whole)
    with pytest.raises(Stopped):
        finish(scaled_too_far(start(tmp_path / "parts", *settings)), stop_after=5)
    second = start(tmp_path / "parts", *settings)
    assert second.progress.skipped == second.scaler.skipped > 0
    finish(second)
    assert 0 < whole.progress.skipped == second.progress.skipped < 24
    for name, value in weights(whole).items():
        assert torch.equal(weights(second)[name], value), name
    for optimizer in second.optimizers:
        steps = {int(state["step"]) for state in optimizer.state.values() if "step" in state}
        assert steps <= {24 - whole.progress.skipped}


def test_a_gradient_infinite_at_every_scale_is_the_models_fault(tmp_path):
    training = start(tmp_path / "run", "trainer.precision=fp16", "trainer.steps=40")
    training.scaler.restore({"scaler.scale": torch.tensor(2.0**-12), "scaler.growth_tracker": torch.tensor(0.0)}, 0)
    for parameter in training.model.parameters():
        parameter.register_hook(lambda gradient: gradient + float("inf"))
    with pytest.raises(NotFinite, match="gradient norm"):
        finish(training)


@pytest.mark.parametrize("name", registry.names("model"))
def test_activations_computed_again_give_the_same_gradients(name):
    model = models.build(name, vocab_size=11, n_layer=2, n_embd=16, ctx_len=8, backend="reference")
    idx = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))
    before = torch.autograd.grad(model.loss(idx, idx), list(model.parameters()))
    trainer_config = checked(*TINY, "trainer.activation_checkpointing=true").trainer
    device.dress(model, trainer_config, device.Resolved("cpu", "fp32", "reference", 1))
    after = torch.autograd.grad(model.loss(idx, idx), list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    with torch.no_grad():
        assert torch.isfinite(model(idx)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names("model"))
def test_compiled_blocks_give_the_same_gradients(monkeypatch, name):
    # Every part of torch.compile but the compiler of the machine's code.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model = models.build(name, vocab_size=11, n_layer=2, n_embd=16, ctx_len=8)
    idx = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))
    before = torch.autograd.grad(model.loss(idx, idx), list(model.parameters()))
    device.dress(model, checked(*TINY).trainer, device.Resolved("cpu", "fp32", "native", 1, compile=True))
    after = torch.autograd.grad(model.loss(idx, idx), list(model.parameters()))
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_auto_chose_is_kept():
    config = checked(*TINY)
    chosen = dataclasses.asdict(device.resolve(config))
    earlier = {key: value for key, value in chosen.items() if key != "compile"}
    assert device.resolve(config, earlier) == device.resolve(config)
    kept = device.resolve(config, chosen | {"precision": "bf16", "compile": True})
    assert (kept.precision, kept.compile) == ("bf16", True)
    assert device.resolve(checked(*TINY, "trainer.compile=true")).compile
    with pytest.raises(UserError, match="compile"):
        device.resolve(checked(*TINY, "trainer.compile=false"), chosen | {"compile": True})


def test_a_profile_has_a_trace_and_a_table(tmp_path):
    training = start(tmp_path / "run", "trainer.steps=8", "trainer.profile=2")
    finish(training)
    assert (training.folder / "profile/trace.json").stat().st_size > 0
    assert "aten::" in (training.folder / "profile/operators.txt").read_text()


def test_batches_come_in_order_ahead_or_not_and_errors_when_taken():
    places = [(step, micro) for step in range(5) for micro in range(2)]
    made = []

    def make(step: int, micro: int) -> tuple[int, int]:
        made.append((step, micro))
        if step == 4:
            raise ValueError("spoiled")
        return step, micro

    for ahead in (0, 3):
        made.clear()
        with Loader(make, places, ahead) as batches:
            assert [batches.take() for _ in range(8)] == places[:8]
            with pytest.raises(ValueError, match="spoiled"):
                batches.take()
    with Loader(make, places, 1) as batches:
        batches.take()


def test_betas_and_stages_by_tokens():
    words = ("trainer.tokens=2000", "trainer.batch_size=2", "model.ctx_len=10", "schedule=piecewise")
    betas = ("optimizer.betas_late=[0.9,0.999]", "optimizer.betas_late_tokens=501")
    stages = "schedule.stages=[{until_tokens:500,lr:2e-3,shape:constant},{until_tokens:2000,lr:1e-5,shape:exponential}]"
    config = checked(*words, *betas, stages, "schedule.lr_init=2e-3")
    assert config.optimizer.betas_late_step == 26  # the first update behind 501 tokens
    rate = config.schedule.build(100)
    assert rate(24) == 2e-3 and rate(25) < 2e-3 and rate(99) == pytest.approx(1e-5)
    assert check.check(OmegaConf.create(check.plain(config))) == config
    for wrong in ("{until_tokens:3000,lr:1e-5}", "{until_tokens:500,lr:1e-5}", "{lr:1e-5}"):
        with pytest.raises(UserError, match=r"schedule\.stages"):
            checked(*words, f"schedule.stages=[{wrong}]")
