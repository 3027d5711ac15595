"""One law over size, length and schedule: recovery, sizes left out, what users get wrong, the command."""

import json

import numpy as np
import pytest

from analysis import scale
from analysis.cli import main
from analysis.curves import LossCurve, load
from analysis.curves.sizes import COUNTS, size_of
from analysis.fit.scale_posterior import NAMES, Scales, losses
from analysis.schedules.compute_optimal import compute_optimal
from analysis.schedules.features import LevelBlocks
from rwkv_lab.config.errors import UserError
from rwkv_lab.training.schedules import rates

SIZES = (1e5, 2e5, 4e5, 8e5)
STEPS = (2000, 4000)
WARMUP = 100
SCALES = Scales(8e5, 2e-3, 0.35)
TRUTH = {
    **{"L0": 1.6, "R": -1.8, "a": -0.6, "c": -1.5, "tau": 4.6, "b": 0.1, "p": 1.0, "q": 0.63, "kappa": 0.7, "Q": 0.28},
    **{"d": -0.1, "slope": np.log(0.15), "alpha": np.log(0.4), "gamma": 0.1, "delta": 0.05, "omega": 0.3},
}


def schedule(kind: str, steps: int, peak: float) -> np.ndarray:
    return rates(kind, steps, lr_init=peak, lr_final=0.0 if kind == "wsd" else peak / 10, warmup_steps=WARMUP)


def run_of(size: float, kind: str, steps: int, peak: float = 2e-3, noise: float = 0.002) -> LossCurve:
    lr, at = schedule(kind, steps, peak), np.arange(50, steps + 1, 50)
    theta = np.array([[TRUTH[name] for name in NAMES]])
    loss = losses(theta, size, LevelBlocks(lr, at, WARMUP), SCALES)[0]
    rng = np.random.default_rng([int(size), steps, len(kind)])
    return LossCurve(at, loss + noise * rng.normal(size=len(at)), lr, {"name": f"{kind}_{steps}_{size:.0f}"})


def runs_of(sizes: tuple[float, ...]) -> tuple[list[LossCurve], list[float]]:
    every = [(n, run_of(n, kind, steps)) for n in sizes for kind in ("wsd", "cosine") for steps in STEPS]
    return [curve for _, curve in every], [size for size, _ in every]


@pytest.fixture(scope="module")
def fitted():
    return scale.fit(*runs_of(SIZES), tokens_per_step=4096)


def test_the_next_size_is_predicted_within_its_interval(fitted):
    for kind, steps in (("wsd", 6000), ("cosine", 4000)):
        target = run_of(1.6e6, kind, steps, noise=0.0)
        prediction = fitted.predict(1.6e6, target.lr)
        low, high = prediction.interval(0.9)
        assert abs(prediction.final_loss - target.loss[-1]) < 0.01
        assert low < target.loss[-1] < high < low + 0.08
        assert len(prediction.loss) == steps


def test_parameters_lie_within_their_errors(fitted):
    found, errors = fitted.parameters, fitted.posterior.errors()
    truth = {"alpha": 0.4, "gamma": 0.1, "delta": 0.05, "omega": 0.3, "a": np.exp(-0.6), "q": 0.63}
    for name, value in truth.items():
        assert abs(found[name] - value) < 3 * errors[name] + 0.02, name


def test_every_size_is_predicted_from_the_others(fitted):
    assert all(run.left_out is not None for run in fitted.runs)
    assert fitted.inflation >= 1
    assert np.mean([abs(run.left_out - run.loss) for run in fitted.runs]) < 0.02


def test_a_stored_fit_predicts_the_same(fitted, tmp_path):
    path = tmp_path / "scale.json"
    path.write_text(json.dumps(fitted.to_dict()))
    again = scale.ScaleFit.load(path)
    lr = schedule("wsd", 3000, 2e-3)
    assert again.predict(5e5, lr).interval() == fitted.predict(5e5, lr).interval()
    path.write_text("{}")
    with pytest.raises(UserError):
        scale.ScaleFit.load(path)


def test_a_larger_budget_buys_a_larger_model(fitted):
    small, large = (compute_optimal(fitted, flops) for flops in (3e13, 3e14))
    for one in (small, large):
        assert one.parameters_interval[0] < one.best_parameters < one.parameters_interval[1]
        assert one.tokens_interval[0] < one.best_tokens < one.tokens_interval[1]
        assert one.best_tokens * one.best_parameters * 6 == pytest.approx(one.flops)
    assert large.best_parameters > small.best_parameters
    assert large.best_loss < small.best_loss


def test_two_sizes_leave_the_exponent_to_its_prior():
    law = scale.fit(*runs_of(SIZES[:2]))
    assert "alpha" in law.posterior.resting_on_prior()
    assert any("two sizes" in remark and "prior" in remark for remark in law.remarks)
    three = scale.fit(*runs_of(SIZES[:3])).predict(8e5, schedule("wsd", 4000, 2e-3))
    two = law.predict(8e5, schedule("wsd", 4000, 2e-3))
    assert np.ptp(two.interval()) > np.ptp(three.interval())


def test_the_best_peak_is_where_the_losses_are_lowest():
    def swept(size: float, best: float) -> list[LossCurve]:
        found = []
        for peak in (1e-3, 2e-3, 4e-3):
            curve = run_of(size, "cosine", 2000, peak, noise=0.0)
            off = 0.05 * np.log(peak / best) ** 2
            found.append(LossCurve(curve.step, np.linspace(4, 3 + off, len(curve.step)), curve.lr))
        return found

    assert scale.best_peak(swept(1e5, 1.5e-3)) == pytest.approx(1.5e-3, rel=0.02)
    assert scale.best_peak(swept(1e5, 8e-3)) is None  # beyond the peaks tried
    assert scale.best_peak(swept(1e5, 1.5e-3)[:2]) is None


@pytest.mark.parametrize(
    "sizes, named",
    [((1e5,), "two sizes"), ((), "two sizes"), ((1e5, -1.0), "above 0"), ((1e5, np.nan), "above 0")],
)
def test_sizes_that_cannot_be_fitted_are_refused(sizes, named):
    curves = [run_of(1e5, "wsd", 2000) for _ in sizes]
    with pytest.raises(UserError, match=named):
        scale.fit(curves, sizes)


def test_runs_that_differ_in_more_than_size_are_refused():
    curves, parameters = runs_of(SIZES[:2])
    curves[0].meta["batch_size"], curves[1].meta["batch_size"] = 8, 16
    with pytest.raises(UserError, match="batch"):
        scale.fit(curves, parameters)
    with pytest.raises(UserError, match="one number a curve"):
        scale.fit(curves, parameters[:1])


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    for curve in runs_of(SIZES[:3])[0]:
        at = np.minimum(curve.step, len(curve.lr) - 1)
        rows = [f"{s},{curve.lr[i]},{x}" for s, i, x in zip(curve.step, at, curve.loss, strict=True)]
        (folder / f"{curve.name}.csv").write_text("step,lr,loss\n" + "\n".join(rows) + "\n")
    return sorted(folder.glob("*.csv"))


def test_the_command_writes_numbers_and_figures(logs, tmp_path, capsys):
    sizes = [path.stem.rsplit("_", 1)[1] for path in logs]
    out = tmp_path / "out"
    options = [
        "--parameters",
        *sizes,
        "--tokens-per-step",
        "4096",
        "--flops",
        "1e14",
        "--size",
        "8e5",
        "--tokens",
        "2e7",
    ]
    assert main(["scale", *map(str, logs), *options, "--schedule", "cosine", "--out", str(out)]) == 0
    stored = json.loads((out / "scale.json").read_text())
    low, high = stored["predicted"]["interval"]
    assert low < stored["predicted"]["final_loss"] < high
    assert stored["predicted"]["steps"] == round(2e7 / 4096)
    assert stored["compute_optimal"][0]["best_parameters"] > 0
    for name in ("isoflop", "compute", "residuals"):
        assert (out / f"{name}.png").stat().st_size > 5000
        assert "</svg>" in (out / f"{name}.svg").read_text()
    assert "alpha" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        [],  # the sizes are unknown
        ["--parameters", "1e5"],
        ["--parameters", *["1e5"] * 12],
        ["--parameters", *["1e5", "2e5"] * 6, "--level", "2"],
        ["--parameters", *["1e5", "2e5"] * 6, "--size", "1e6"],
    ],
)
def test_the_command_refuses_what_it_cannot_use(logs, tmp_path, options):
    with pytest.raises(UserError):
        main(["scale", *map(str, logs), *options, "--out", str(tmp_path)])


def test_sizes_follow_from_a_name(tmp_path):
    curve = run_of(1e5, "wsd", 2000)
    curve.meta["name"] = "corpus_L12_H12_cos"
    known = size_of(curve)
    assert known.counted("body", curve.name) == pytest.approx(85e6, rel=0.01)
    with pytest.raises(UserError, match="--parameters"):
        known.counted("all", curve.name)


def test_the_largest_published_size_is_predicted_from_the_smaller_ones(material):
    curves = [load(path) for path in sorted((material / "curves" / "llama_sizes").glob("*.csv"))]
    for how in COUNTS:
        assert all(size_of(curve).counted(how, curve.name) > 0 for curve in curves)
    sizes = [size_of(curve).counted("all", curve.name) for curve in curves]
    largest = max(sizes)
    law = scale.fit(*zip(*((c, n) for c, n in zip(curves, sizes, strict=True) if n < largest), strict=True))
    errors, covered = [], []
    for curve in (c for c, n in zip(curves, sizes, strict=True) if n == largest):
        prediction = law.predict(largest, curve.lr)
        error = float(prediction.at(curve.step[-1]) - curve.loss[-1])
        errors.append(abs(error))
        covered.append(2 * abs(error) < np.ptp(prediction.interval(0.9)))
    assert np.mean(errors) < 0.03
    assert np.mean(covered) > 0.8


def test_sizes_follow_from_a_run_directory(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,lr,train_loss\n1,1e-3,4.0\n2,1e-3,3.0\n")
    (tmp_path / "config.yaml").write_text("model: {name: rwkv_v4, n_embd: 16}\ntrainer: {batch_size: 4}\n")
    manifest = {"parameters": 6896, "flops_per_token": 30528.0, "steps": 6, "tokens": 384, "data": {"vocab_size": 70}}
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "status": "finished", **manifest}))
    known = size_of(load(tmp_path))
    assert (known.all, known.body) == (6896, 6896 - 2 * 16 * 70)
    assert (known.tokens_per_step, known.flops_per_token) == (64, 30528)
