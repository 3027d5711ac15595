"""An optimizer, a schedule and a metric of another package: each one file in a temporary folder."""

from pathlib import Path

import numpy as np
import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules
from rwkv_lab.training.metrics import FIRST
from tests.in_process import STEPS, Here, make_here, numbers
from tests.plug_in import plugged_in

LION = '''
@register("optimizer", "lion")
@dataclass
class LionConfig(OptimizerConfig):
    """Lion (Chen et al. 2023, arXiv 2302.06675): the sign of an interpolated momentum."""

    name: str = "lion"
    betas: list[float] = setting(factory=lambda: [0.9, 0.99], low=0, below=1)  # of the update, of the momentum

    def build(self, parameters):
        import torch

        class Lion(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self):
                for group in self.param_groups:
                    first, second = group["betas"]
                    for p in group["params"]:
                        state = self.state[p]
                        if not state:
                            state["momentum"], state["updates"] = torch.zeros_like(p), 0
                        p.sub_((state["momentum"] * first + p.grad * (1 - first)).sign(), alpha=group["lr"])
                        state["momentum"].mul_(second).add_(p.grad, alpha=1 - second)
                        state["updates"] += 1

        matrices = [p for p in parameters.values() if p.ndim == 2]
        rest = [p for p in parameters.values() if p.ndim != 2]
        defaults = {"lr": 0.0, "betas": self.betas}
        return [Lion([{"params": matrices, "lr_scale": 0.1}], defaults), Lion(rest, defaults)]

    def state_bytes(self, parameters):
        return sum(4 * p.numel() for p in parameters.values())
'''

STEPWISE = '''
@register("schedule", "stepwise")
@dataclass
class StepwiseConfig(ScheduleConfig):
    """lr_init, multiplied by ``factor`` after each of ``stairs`` equal parts of the run."""

    name: str = "stepwise"
    lr_init: float = setting(2e-3, low=0)  # rate of the first part
    factor: float = setting(0.5, above=0, high=1)  # from one part to the next
    stairs: int = setting(3, low=1)  # parts

    def build(self, total):
        return lambda step: self.lr_init * self.factor ** (step * self.stairs // total)
'''

WEIGHT_NORM = """
@register("metric", "weight_norm")
def weight_norm(update):
    return float(sum(p.detach().square().sum() for p in update.model.parameters()) ** 0.5)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return make_here(tmp_path, monkeypatch)


def test_lion_trains_and_resumes_bit_for_bit(here: Here, tmp_path: Path) -> None:
    with plugged_in(tmp_path / "site", here.monkeypatch, LION):
        assert here.run("optimizer=lion", "optimizer.betas=[0.8,0.9]", "study=whole", study="whole") == 0
        undisturbed = numbers(here.folder("whole"))
        here.kill_at(5, "optimizer=lion", "optimizer.betas=[0.8,0.9]")
        assert here.run("optimizer=lion", "optimizer.betas=[0.8,0.9]") == 0
        assert numbers(here.folder()) == undisturbed
        losses = here.loaded().metrics()["train_loss"]
        assert losses[-1] < losses[0]
        with pytest.raises(UserError, match=r"choose one of .*lion"):
            here.run("optimizer=lion", "optimizer.name=lyon")
    with pytest.raises(Exception, match="lion"):
        here.run("optimizer=lion")


def test_a_stepwise_schedule_trains_and_is_known_to_rates(here: Here, tmp_path: Path) -> None:
    with plugged_in(tmp_path / "site", here.monkeypatch, STEPWISE):
        assert here.run("schedule=stepwise", "schedule.stairs=4") == 0
        logged = here.loaded().metrics()["lr"]
        known = schedules.rates("stepwise", STEPS, stairs=4)
        assert known.tolist() == np.repeat([2e-3, 1e-3, 5e-4, 2.5e-4], STEPS // 4).tolist()
        np.testing.assert_allclose(logged, known, rtol=1e-8)
        with pytest.raises(UserError, match=r"schedule\.factor.*at most 1"):
            here.run("schedule=stepwise", "schedule.factor=2")


def test_a_column_added_later_keeps_the_rows_before_it(here: Here, tmp_path: Path) -> None:
    here.kill_at(7)
    before = (here.folder() / "metrics.csv").read_text().splitlines()
    with plugged_in(tmp_path / "site", here.monkeypatch, WEIGHT_NORM):
        assert here.run() == 0
        columns = here.loaded().metrics()
    assert [*columns][: len(FIRST)] == [*FIRST] and [*columns][-1] == "weight_norm"
    assert columns["step"].tolist() == list(range(1, STEPS + 1))
    assert np.isnan(columns["weight_norm"][:6]).all() and (columns["weight_norm"][6:] > 0).all()
    rows = (here.folder() / "metrics.csv").read_text().splitlines()
    assert [row.rpartition(",")[0] for row in rows[1:7]] == before[1:7]
