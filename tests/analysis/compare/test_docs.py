"""The recipes of docs/comparing.md are commands that work."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def recipes(repository) -> str:
    return (repository / "docs" / "comparing.md").read_text()


def dry_run(repository: Path, words: list[str]) -> str:
    """What ``run.py`` says of a command it is not to carry out."""
    command = [sys.executable, str(repository / "run.py"), *words, "dry_run=true"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def agents_command(sweep: dict) -> list[str]:
    """The words W&B's agent would start for the first values of ``sweep``, expanded by its own code."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    chosen = {
        name: {"value": one["values"][-1] if "values" in one else one["min"]}
        for name, one in sweep["parameters"].items()
    }
    expanded = utils.create_sweep_command_args({"args": chosen})
    expanded |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
    words: list[str] = []
    for word in utils.create_sweep_command(sweep["command"]):
        words += expanded[word[2:-1]] if word.startswith("${") else [word]
    return words


@pytest.mark.slow
def test_the_sweep_agents_command_composes(repository, recipes, tmp_path):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    (tmp_path / "sweep.yaml").write_text(re.search(r"```yaml\n(.*?)```", recipes, re.DOTALL)[1])
    words = agents_command(utils.load_sweep_config(str(tmp_path / "sweep.yaml")))
    assert words[:6] == ["/usr/bin/env", "python", "run.py", "model=mha_pro", "schedule.lr_init=0.0002", "seed=3"]
    assert "mha_pro-kjv-s3" in dry_run(repository, words[3:])


@pytest.mark.slow
@pytest.mark.parametrize("study", ["two_texts", "lr_sweep"])
def test_the_sweeps_without_an_agent_compose(repository, recipes, study):
    (command,) = re.findall(rf"python (run\.py -m [^`\n]*study={study}[^`\n]*)", recipes)
    shown = dry_run(repository, shlex.split(command)[1:])
    assert "pending" in shown
    for model in ("rwkv_v4", "mha_pro"):
        assert shown.count(model) >= 3


def test_every_file_the_page_lists_is_written(recipes):
    from analysis.cli.compare import PAGE

    assert PAGE in recipes
    for name in ("compare.md", "groups.csv", "pairs.csv", "runs.csv", "loss_tokens", "loss_seconds", "loss_flops"):
        assert name in recipes
