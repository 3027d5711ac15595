"""``python -m analysis fit | predict | optimal`` from the outside."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from analysis.cli import main
from analysis.curves import load
from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules


@pytest.fixture(scope="module")
def logs(run_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    for name in ("cosine", "wsd"):
        curve = run_of("vplus", name, noise=0.003)
        rows = [f"{s},{curve.lr[s]},{x}" for s, x in zip(curve.step, curve.loss, strict=True)]
        (folder / f"{name}.csv").write_text("step,lr,loss\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def fitted(logs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert main(["fit", str(logs / "cosine.csv"), str(logs / "wsd.csv"), "--out", str(out)]) == 0
    return out


def test_fit_writes_everything(fitted):
    for name in ("fit", "windows", "proposal", "ranking"):
        assert (fitted / f"{name}.png").stat().st_size > 5000
        assert "</svg>" in (fitted / f"{name}.svg").read_text()
    content = json.loads((fitted / "fit.json").read_text())
    proposal = content["proposal"]
    with (fitted / "schedule.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert proposal["steps"] == len(proposal["rates"]) == len(rows)
    np.testing.assert_allclose([float(row["lr"]) for row in rows], proposal["rates"], rtol=1e-6)
    low, high = proposal["interval"]
    assert low < proposal["predicted_final_loss"] < high
    assert (proposal["level"], proposal["column"], proposal["law"], proposal["kind"]) == (0.9, "loss", "auto", "free")


def test_fit_prints_the_parameters_the_ranking_and_the_next_command(logs, tmp_path, capsys):
    main(
        [
            "fit",
            str(logs / "cosine.csv"),
            str(logs / "wsd.csv"),
            "--law",
            "vplus",
            "--out",
            str(tmp_path / "deep" / "er"),
        ]
    )
    said = capsys.readouterr().out
    for text in (
        "alpha",
        "standard error",
        "predicted from the others",
        "90 % interval",
        "exponential",
        "schedule=fitted",
    ):
        assert text in said


def test_the_note_plots_come_with_the_variational_law(logs, tmp_path):
    main(["fit", str(logs / "cosine.csv"), "--law", "variational", "--out", str(tmp_path)])
    assert (tmp_path / "note.png").is_file()
    content = json.loads((tmp_path / "fit.json").read_text())
    assert content["proposal"]["steps"] == 1496  # with the run's own rates before the window
    assert content["lead"] == content["proposal"]["rates"][: len(content["lead"])]


def test_the_annealing_law_proposes_nothing(logs, tmp_path, capsys):
    main(["fit", str(logs / "cosine.csv"), str(logs / "wsd.csv"), "--law", "annealing", "--out", str(tmp_path)])
    assert "no schedule is proposed" in capsys.readouterr().out
    assert "proposal" not in json.loads((tmp_path / "fit.json").read_text())


def test_predict(fitted, tmp_path, capsys):
    arguments = [
        "--schedule",
        "linear",
        "--steps",
        "800",
        "--lr-init",
        "2e-3",
        "--lr-final",
        "0",
        "--warmup-steps",
        "10",
    ]
    assert main(["predict", str(fitted), *arguments, "--out", str(tmp_path)]) == 0
    assert "90 % interval" in capsys.readouterr().out
    with (tmp_path / "predicted_linear.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 800
    assert (tmp_path / "predicted_linear.svg").is_file()
    schedule = fitted / "schedule.csv"
    assert main(["predict", str(fitted / "fit.json"), "--schedule", str(schedule), "--out", str(tmp_path)]) == 0


def test_predict_takes_any_field_of_a_schedule(fitted, tmp_path):
    arguments = ["--steps", "600", "--decay-shape", "power", "--set", "decay_power=3", "--out", str(tmp_path)]
    assert main(["predict", str(fitted), "--schedule", "wsd", *arguments]) == 0
    with (tmp_path / "predicted_wsd.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    expected = schedules.rates(
        "wsd", 600, lr_init=3e-3, lr_final=3e-4, warmup_steps=50, decay_shape="power", decay_power=3.0
    )
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_file_of_schedules_gives_the_rates(fitted, logs, tmp_path):
    described = {"kind": "linear_tail", "total": 400, "warmup": 20, "peak": 2e-3, "end": 0.0, "decay_start": 100}
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"schedules": {"mine": described}}))
    arguments = ["--schedules", str(file), "--out", str(tmp_path)]
    assert main(["predict", str(fitted), "--schedule", "mine", *arguments]) == 0
    with pytest.raises(UserError, match="other"):
        main(["predict", str(fitted), "--schedule", "other", *arguments])
    (tmp_path / "mine.csv").write_text("step,loss\n" + "\n".join(f"{i},{3 - i / 400}" for i in range(0, 400, 4)))
    curve = load(tmp_path / "mine.csv", schedules=file)
    assert len(curve.lr) == 400
    assert curve.lr[250] == pytest.approx(1e-3)


def test_optimal_writes_a_schedule_file(fitted, tmp_path, capsys):
    assert main(["optimal", str(fitted), "--steps", "700", "--kind", "wsd", "--out", str(tmp_path)]) == 0
    proposal = json.loads((tmp_path / "optimal_wsd_700.json").read_text())["proposal"]
    assert proposal["steps"] == len(proposal["rates"]) == 700
    assert proposal["schedule"]["name"] == "wsd"
    assert "wsd" in capsys.readouterr().out


def test_a_folder_of_runs_is_expanded(tmp_path):
    from analysis.cli.fit import expand

    for name in ("b", "a"):
        (tmp_path / "study" / name).mkdir(parents=True)
        (tmp_path / "study" / name / "metrics.csv").write_text("step,lr,train_loss\n1,1,1\n")
    assert expand(str(tmp_path / "study")) == [str(tmp_path / "study" / name) for name in ("a", "b")]
    (tmp_path / "empty").mkdir()
    assert expand(str(tmp_path / "empty")) == []
    with pytest.raises(UserError, match="no run below"):
        main(["fit", str(tmp_path / "empty")])


def test_a_folder_without_runs_is_passed_over(logs, tmp_path, capsys):
    (tmp_path / "comparison").mkdir()
    arguments = [str(logs / "cosine.csv"), str(tmp_path / "comparison"), str(logs / "wsd.csv")]
    assert main(["fit", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert "passed over" in capsys.readouterr().out


def test_a_fit_is_written_even_if_no_schedule_can_be_proposed(logs, tmp_path, monkeypatch, capsys):
    from analysis.schedules import recommended

    def fail(*_):
        raise UserError("nothing to propose")

    monkeypatch.setattr(recommended, "propose", fail)
    assert main(["fit", str(logs / "cosine.csv"), str(logs / "wsd.csv"), "--out", str(tmp_path)]) == 0
    assert "proposal" not in json.loads((tmp_path / "fit.json").read_text())
    assert "nothing to propose" in capsys.readouterr().out


def test_forecast(logs, tmp_path, capsys):
    lines = (logs / "wsd.csv").read_text().splitlines()
    (tmp_path / "running.csv").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    arguments = ["forecast", str(tmp_path / "running.csv"), "--schedule", str(logs / "wsd.csv")]
    assert main([*arguments, "--with", str(logs / "cosine.csv")]) == 0
    assert "final loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "gone.csv"], "gone.csv: no such file"),
        (["fit", "gone.csv", "--window", "soon"], "--window"),
        (["fit"], "required"),
        (["fitt"], "did you mean 'fit'"),
        (["predict", "gone.json", "--schedule", "cosine"], "gone.json cannot be read"),
        (["optimal", "gone.json", "--steps", "x"], "--steps"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message):
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_exits_with_2_and_a_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "fit", "gone.csv"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: gone.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "cosin", "--steps", "10"], "did you mean 'cosine'"),
        (["--schedule", "cosine"], "steps must"),
        (["--schedule", "cosine", "--steps", "500", "--decay-fraction", "0.1"], "no field decay_fraction"),
        (["--schedule", "wsd", "--steps", "500", "--set", "decay_power"], "--set must be KEY=VALUE"),
        (["--schedule", "gone.csv"], "no such file"),
        (["--schedule", "wsd", "--steps", "500", "--decay-shape", "square"], "square"),
    ],
)
def test_a_schedule_that_is_none_is_named(fitted, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["predict", str(fitted), *arguments])


def test_no_part_of_the_analysis_imports_torch():
    code = (
        "import sys, analysis.fit, analysis.schedules.search, analysis.plots.fit_figures, analysis.cli._tables, "
        "analysis.cli.fit, analysis.cli.predict, analysis.cli.optimal; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_imports_nothing_slow():
    code = (
        "import sys; from analysis.cli import main\n"
        "try: main(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'scipy', 'matplotlib', 'torch', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
