"""The script of docs/interop.md: a run goes through every door, and nothing is lost on the way."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

# What each arrow may differ by, as the page that describes it states.
MOST = {"logits": 1e-5, "of 50 greedy tokens": 0, "nats of the greedy text": 1e-4, "weights, at a rate of 1e-5": 4e-4}


@pytest.mark.slow
def test_the_script_of_the_page(repository, tmp_path):
    for package in ("onnxscript", "onnxruntime", "transformers", "lm_eval", "selenium"):
        pytest.importorskip(package)
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs Chromium and chromedriver")
    page = (repository / "docs" / "interop.md").read_text()
    script = re.search(r"```python\n(import json\n.*?)```", page, re.DOTALL)[1]
    environment = {**os.environ, "PYTHONPATH": str(repository), "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    arrows = re.findall(r"^(.+?) +largest difference (\S+) \((.+)\)$", done.stdout, re.MULTILINE)
    assert len(arrows) == 8, done.stdout
    for name, difference, unit in arrows:
        assert float(difference) <= MOST[unit], name
    (run,) = (tmp_path / "runs" / "doors").iterdir()
    assert json.loads((run / "run.json").read_text())["evals"]["people"]["samples"] == 2
