"""The recipes of docs/comparing.md are commands that work."""

import re
import subprocess
import sys

import pytest
import yaml


@pytest.mark.slow
def test_the_sweep_agents_command_composes(repository):
    """What W&B's agent would run for the documented sweep, expanded by its own code, stopped before training."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    text = (repository / "docs" / "comparing.md").read_text()
    sweep = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    parameters = sweep["parameters"]
    chosen = {name: {"value": p["values"][-1] if "values" in p else p["min"]} for name, p in parameters.items()}
    expanded = utils.create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    assert expanded == ["model=mha_pro", "schedule.lr_init=0.0002", "seed=3"]
    command = sweep["command"]
    assert command[:3] == ["${env}", "${interpreter}", "run.py"]
    fixed = [word for word in command[3:] if word != "${args_no_hyphens}"]
    done = subprocess.run(
        [sys.executable, str(repository / "run.py"), *expanded, *fixed, "dry_run=true"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "mha_pro-builtin-s3" in done.stdout + done.stderr
