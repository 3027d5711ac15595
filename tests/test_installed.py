"""The wheel, installed where no checkout is: it trains, sweeps, fits and generates in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from rwkv_lab.runs.provenance import code_fingerprint
from tests.lab import TINY, make_lab

BUILD_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
DATA = {"conf": "*.yaml", "csrc": "*.*", "experiments": "*.yaml"}
# A fit needs more rows than debug=smoke writes.
CURVE = ("trainer.steps=60", "trainer.eval_every=1", "trainer.eval_tokens=512", "trainer.final_tokens=512")

WHERE = """
import analysis, rwkv_lab
from rwkv_lab.runs.provenance import code_fingerprint
print(analysis.__file__, rwkv_lab.__file__, code_fingerprint())
"""


def build_wheel(repository: Path, folder: Path) -> Path:
    """Build in a copy, so that the checkout gets no build/ and an old build/ cannot leak into the wheel."""
    source = make_lab(repository, folder / "source").root
    for name in BUILD_FILES:
        shutil.copy(repository / name, source)
    pip("wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), cwd=source)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def pip(*arguments: str, **options: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(repository, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a virtual environment that has the wheel, and the dependencies of the running one."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=False)
    python = root / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (site,) = root.glob("lib/python*/site-packages")
    # A folder added by a .pth file is searched, but its own .pth files, the editable install's too, are not read.
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path(name) for name in ("purelib", "platlib")}))
    return root / "bin"


@pytest.mark.slow
def test_the_wheel_has_every_file_that_commands_read(wheel, repository):
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"rwkv_lab/{path.relative_to(repository)}"
        for folder, pattern in DATA.items()
        for path in (repository / folder).rglob(pattern)
    }
    for package in ("rwkv_lab", "analysis", "hydra_plugins"):
        files = [
            path
            for path in (repository / package).rglob("*.*")
            if path.suffix != ".pyc" and "prebuilt" not in path.parts
        ]
        wanted |= {str(path.relative_to(repository)) for path in files if path.is_file()}
    assert wanted <= packed
    assert {name.split("/")[0] for name in packed if "dist-info" not in name} == {
        "rwkv_lab",
        "analysis",
        "hydra_plugins",
    }


@pytest.mark.slow
def test_an_installed_copy_works_in_an_empty_folder(installed, tmp_path):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "WANDB_", "HYDRA_"))}
    environment = kept | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    here = tmp_path / "empty"
    here.mkdir()

    def run(*command: str) -> str:
        program = str(installed / command[0])
        done = subprocess.run([program, *command[1:]], cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    *where, fingerprint = run("python", "-c", WHERE).split()
    assert all(Path(file).is_relative_to(installed.parent) for file in where)
    # Runs of the checkout count as runs of the same code.
    assert fingerprint == code_fingerprint()
    # Each job is a process of its own, started as the command that trains one model.
    run("rwkv-lab", "train", "-m", "seed=1,2", "study=probe", "debug=smoke", *TINY, *CURVE)
    runs = sorted(str(path.parent.relative_to(here)) for path in here.glob("runs/probe/*/run.json"))
    assert len(runs) == 2
    run("rwkv-lab", "fit", *runs)
    assert (here / "fit" / "fit.json").is_file()
    assert run("rwkv-lab", "generate", runs[0], "The ", "--length", "5").startswith("The ")
    assert {path.name for path in here.iterdir()} == {"runs", "fit"}
