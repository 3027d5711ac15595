"""Every command of the README runs, on models small enough for a test."""

import re
import shlex
from pathlib import Path

import pytest

from tests.lab import TINY, Lab

QUICK = ("debug=smoke", *TINY)
# A loss law needs a curve: more updates than debug=smoke makes, still under a second of training.
CURVE = (*TINY, "trainer.steps=120", "trainer.eval_every=1", "trainer.eval_tokens=512", "trainer.sample_length=0")


def commands(readme: Path) -> list[str]:
    return [line.strip() for line in readme.read_text().splitlines() if re.match(r"    (python|make|torchrun) ", line)]


def shortened(command: str, lab: Lab) -> list[str]:
    """The command's words with the placeholders filled in and, for training, a tiny run."""
    words = shlex.split(command, comments=True)[1:]
    latest = max(lab.runs.glob("*/*/run.json"), key=lambda path: path.stat().st_mtime, default=None)
    words = [str(latest.parent) if word == "RUN" and latest else word for word in words]
    words = [str(path) for word in words for path in (sorted(lab.root.glob(word)) if "*" in word else [word])]
    if words[0] != "run.py" or "--help" in words:
        return words
    text = str(lab.root / "my.txt")
    if "data=enwik8" in words:
        words.append(f"data.path={text}")
    if "experiments=arch_comparison" in words:
        words += ["model=rwkv_v4,mha_rotary", "seed=1,2"]
    words += CURVE if "experiments=lr_probe" in words else QUICK
    return [f"data.path={text}" if word == "data.path=my.txt" else word for word in words]


def test_the_readme_has_commands(repository):
    found = commands(repository / "README.md")
    assert {"make run", "make test"} <= {command.partition("#")[0].strip() for command in found}
    assert sum(command.startswith("python run.py") for command in found) >= 8


@pytest.mark.slow
def test_every_readme_command_runs(lab, repository):
    (lab.root / "my.txt").write_text("A sentence of the reader's own, said again. " * 500)
    for command in commands(repository / "README.md"):
        if command.startswith("python "):
            done = lab.python(*shortened(command, lab), timeout=300)
            assert done.stdout.strip(), command


def test_files_the_readme_links_exist(repository):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (repository / "README.md").read_text()):
        assert (repository / target).exists(), target
