"""``make gpu`` rehearsed on the CPU; steps that fail, hang or tear; no GPU is one sentence."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import report
from rwkv_lab.config.errors import main_guard


def run(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "benchmarks.gpu", *words], capture_output=True, text=True, **options)


@pytest.mark.slow
def test_rehearsal(repository, tmp_path):
    done = run("--rehearse", "--out", str(tmp_path), cwd=repository)
    assert done.returncode == 0, done.stdout
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert [step["name"] for step in content["steps"]] == list(gpu.STEPS)
    assert all(step["result"] == "done" and step["findings"] for step in content["steps"])
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("CPU, a rehearsal") and all(f"| **{name}** |" in page for name in gpu.STEPS)


def arguments(tmp_path, **changed) -> SimpleNamespace:
    return SimpleNamespace(**{"out": tmp_path, "only": None, "text": None, "seconds": 60.0, "rehearse": True} | changed)


@pytest.mark.parametrize(
    ("script", "result"),
    [
        ("print('fine')", "done"),
        ("raise ValueError('bad card')", "failed: ValueError: bad card"),
        ("import time; time.sleep(600)", "did not end within 2 s"),
        ("import os; os.abort()", "failed: exit code -6"),
    ],
)
def test_how_a_step_ends(tmp_path, monkeypatch, script, result):
    monkeypatch.setattr(gpu, "command", lambda name, args: [sys.executable, "-c", script])
    assert gpu.run_step("scan", arguments(tmp_path), 2.0 if "sleep" in script else 60.0) == result


def test_what_fails_is_named_with_its_command_and_the_next_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "run_step", lambda name, args, seconds: "failed: it" if name == "scan" else "done")
    monkeypatch.setattr(gpu, "arguments", lambda: arguments(tmp_path, only="versions,scan,models", step=None))
    assert gpu.main() == 1
    said = capsys.readouterr().out
    assert "--step scan" in said and "--step models" not in said
    results = [step["result"] for step in json.loads((tmp_path / "gpu.json").read_text())["steps"]]
    assert results == ["done", "failed: it", "done"]


def test_findings_are_on_disk_at_once_and_torn_lines_do_not_count(tmp_path):
    step = report.Step("scan", tmp_path)
    step.found("a", seconds=1.23456)
    step.check("b | c", False, off=float("nan"))
    with open(tmp_path / "scan.jsonl", "a") as file:
        file.write('{"what": "torn", "off')
    found = report.findings(tmp_path, "scan")
    assert found == [{"what": "a", "seconds": 1.235}, {"what": "b | c", "off": "nan", "good": False}]
    page = report.markdown([{"name": "scan", "seconds": 3.0, "result": "failed", "findings": found}], "a card")
    assert page.startswith("a card\n") and "| b \\| c | off nan **fails** |" in page


@pytest.mark.parametrize(
    ("words", "key"), [(["--only", "scans"], "--only"), (["--text", "/nowhere/text"], "--text"), ([], "--rehearse")]
)
def test_mistakes(monkeypatch, capsys, words, key):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", *words])
    assert main_guard(gpu.main) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and key in said


def test_every_step_has_its_function():
    import importlib

    for name, (module, seconds) in gpu.STEPS.items():
        assert callable(getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)) and seconds > 0
