"""What a first user does: a run, the same command again, a sweep, the debug presets, other starting points."""

import json

import pytest

from rwkv_lab import runs
from rwkv_lab.training.metrics import FIRST
from tests.lab import TINY

SHORT = ("debug=smoke", *TINY)


@pytest.fixture(scope="module")
def smoke(lab):
    done = lab.run("study=first", *SHORT)
    return lab.only_run("first"), done


def test_a_run_leaves_everything_a_researcher_needs(smoke):
    path, done = smoke
    run = runs.load(path)
    manifest = run.manifest
    assert run.status == "complete"
    assert {"config.yaml", "run.json", "metrics.csv", "model.safetensors", "tokenizer.json", "sample.txt"} <= {
        file.name for file in path.iterdir()
    }
    assert (path / "metrics.csv").read_text().splitlines()[0] == ",".join((*FIRST, "mfu"))
    assert manifest["result"]["val_bpb"] > 0 and manifest["flops_per_token"] > 0 and manifest["parameters"] > 0
    assert manifest["resolved"]["device"] in ("cpu", "cuda") and manifest["data"]["sha256"]
    assert run.config["model"]["n_layer"] == 1 and run.config["trainer"]["steps"] == 6
    assert "val_bpb" in done.stdout and path.name in done.stdout and "sample" in done.stdout
    assert "Traceback" not in done.stderr


def test_metrics_have_one_row_per_logged_step(smoke):
    path, _ = smoke
    columns = runs.load(path).metrics()
    assert columns["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert columns["tokens"].tolist() == [64 * step for step in range(1, 7)]
    # Evaluated every three steps and at the end.
    assert [step for step, loss in zip(columns["step"], columns["val_loss"], strict=True) if loss == loss] == [3, 6]


def test_only_the_newest_two_checkpoints_are_kept(smoke):
    path, _ = smoke
    assert sorted(file.stem for file in (path / "checkpoints").glob("*.safetensors")) == [
        "step-000000003",
        "step-000000006",
    ]


def test_the_same_command_again_trains_nothing(lab, smoke):
    path, _ = smoke
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file() and file.name != ".lock"}
    again = lab.run("study=first", *SHORT)
    after = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file() and file.name != ".lock"}
    assert before == after
    assert "already complete" in again.stdout and "val_bpb" in again.stdout


def test_other_code_gives_the_result_with_one_warning(lab, smoke):
    source = lab.root / "rwkv_lab" / "cli/help.py"
    text = source.read_text()
    try:
        source.write_text(text + "\n# changed\n")
        again = lab.run("study=first", *SHORT)
    finally:
        source.write_text(text)
    assert again.stderr.count("warning") == 1 and "rerun=true" in again.stderr


def test_rerun_starts_afresh_and_gives_the_same_numbers(lab, smoke):
    path, _ = smoke
    first = runs.load(path).metrics()["train_loss"].tolist()
    lab.run("study=first", *SHORT, "rerun=true")
    again = runs.load(path)
    assert again.metrics()["train_loss"].tolist() == first
    assert "rerun" not in again.config


def test_dry_run_says_what_would_run_and_writes_nothing(lab):
    done = lab.run("study=never", *SHORT, "dry_run=true")
    for words in ("parameters", "FLOPs per token", "tokens", "memory", "run directory", "n_layer: 1"):
        assert words in done.stdout
    assert not (lab.runs / "never").exists()


def test_one_layer_one_token_of_context(lab):
    lab.run("study=shortest", *SHORT, "model.ctx_len=1", "trainer.batch_size=1")
    assert runs.load(lab.only_run("shortest")).status == "complete"


def test_a_model_can_start_from_anothers_weights_with_a_longer_context(lab, smoke):
    path, _ = smoke
    lab.run("study=longer", *SHORT, f"model.init_from={path}", "model.ctx_len=32", "trainer.steps=1")
    first = runs.load(lab.only_run("longer"))
    fresh = runs.load(path)
    assert first.metrics()["train_loss"][0] < fresh.metrics()["train_loss"][0]


@pytest.mark.slow
def test_a_sweep_runs_every_job_and_reports_them(lab):
    done = lab.run("-m", "model=rwkv_v4,mha_rotary", "seed=1,2", "study=four", *SHORT)
    found = runs.find(lab.runs / "four")
    assert [run.status for run in found] == ["complete"] * 4
    assert all(run.name in done.stdout for run in found)
    assert "4 complete" in done.stdout


@pytest.mark.slow
def test_the_overfit_preset_learns_its_batch_by_heart(lab):
    lab.run("study=overfit", "debug=overfit", "trainer.threads=1", timeout=600)
    manifest = json.loads((lab.only_run("overfit") / "run.json").read_text())
    assert manifest["result"]["train_loss"] < 0.05


@pytest.mark.slow
def test_the_default_run_learns_the_built_in_text(lab):
    lab.run("tracker=none", "trainer.threads=1", "trainer.tokens=250k", "trainer.final_tokens=50k", timeout=900)
    result = runs.load(lab.only_run("default")).manifest["result"]
    # Its whole length measures 2.01.
    assert result["val_bpb"] < 2.8


def test_without_a_compiler_it_trains_after_one_sentence(lab, tmp_path):
    # A home of its own has no kernels built before, and an empty PATH no compiler.
    without = lab.environment | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path)}
    done = lab.run("debug=smoke", *TINY, "study=no_compiler", env=without)
    assert done.stderr.count("warning: slow plain torch in place of the native kernels: no C++ compiler") == 1
    assert "ops/scan.py" not in done.stderr
    assert "ops reference" in done.stdout
