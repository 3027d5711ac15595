"""Style and types of the whole tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 400
CODE = ("*.py", "*.cu", "*.cpp", "*.h")


@pytest.mark.parametrize(
    "tool", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=["ruff", "format", "mypy"]
)
def test_tools_are_content(tool, repository):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def sources(repository: Path) -> list[Path]:
    folders = ("rwkv_lab", "analysis", "csrc", "hydra_plugins", "tests")
    return [path for folder in folders for kind in CODE for path in (repository / folder).rglob(kind)]


def test_files_stay_small(repository):
    long = [path.name for path in sources(repository) if len(path.read_text().splitlines()) > LIMIT]
    assert not long


def test_light_modules_import_no_torch(repository):
    modules = (
        "rwkv_lab.cli.train",
        "rwkv_lab.training.job",
        "rwkv_lab.runs",
        "rwkv_lab.training.schedules",
        "analysis.fit",
    )
    for module in modules:
        code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == 0, module


def test_every_line_of_a_registry_has_its_file_and_its_yaml(repository):
    from rwkv_lab.models.registry import MODELS

    for name, entry in MODELS.items():
        assert (repository / "conf" / "model" / f"{name}.yaml").exists()
        assert re.fullmatch(r"rwkv_lab\.models\.\w+", entry.target)
        assert (repository / (entry.target.replace(".", "/") + ".py")).exists()
