"""Rules of the tree that no linter knows; `make lint` checks style, spelling and types."""

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LIMIT = 400
WIDTH = 120
CODE = ("*.py", "*.cu", "*.cpp", "*.h")


def sources(repository: Path) -> list[Path]:
    folders = ("rwkv_lab", "analysis", "benchmarks", "csrc", "hydra_plugins", "tests")
    return [path for folder in folders for kind in CODE for path in (repository / folder).rglob(kind)]


def test_lines_of_kernels_stay_short(repository):
    kernels = [path for path in sources(repository) if path.suffix != ".py"]
    assert kernels
    for path in kernels:
        assert max(map(len, path.read_text().splitlines())) <= WIDTH, path.name


def test_files_stay_small(repository):
    long = [path.name for path in sources(repository) if len(path.read_text().splitlines()) > LIMIT]
    assert not long


def test_light_modules_import_no_torch(repository):
    modules = (
        "rwkv_lab.cli.train",
        "rwkv_lab.training.run",
        "rwkv_lab.runs",
        "rwkv_lab.training.schedules",
        "analysis.fit",
    )
    for module in modules:
        code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == 0, module


def test_every_model_has_its_file_and_its_yaml(repository):
    from rwkv_lab.config.registry import members

    for name, owner in members("model").items():
        assert (repository / "conf" / "model" / f"{name}.yaml").exists()
        assert owner.__module__ == f"rwkv_lab.models.{name}"


def test_constraints_bind_every_direct_dependency_to_an_allowed_version(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    lines = (repository / "constraints.txt").read_text().splitlines()
    bound = dict(line.split("==") for line in lines if not line.startswith("#"))
    needed = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *project["optional-dependencies"]["docs"],
    ]
    for requirement in map(Requirement, needed):
        # Each torch allows other versions of setuptools, which only builds.
        if requirement.name not in ("rwkv_lab", "setuptools"):
            assert requirement.specifier.contains(bound[canonicalize_name(requirement.name)]), requirement
