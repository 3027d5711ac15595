"""An architecture of another package: the one file that docs/models.md shows, found by its entry point."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_lab.config import registry
from tests.in_process import make_here, numbers
from tests.models.contract import moved, options, require_every_parameter_moves, require_recurrent_equals_parallel

NAME = "min_gru"
SETTINGS = (f"model={NAME}", "model.token_shift=half")


@pytest.fixture(scope="module")
def package(repository: Path, tmp_path_factory: pytest.TempPathFactory):
    """A folder on the path with the file and the metadata an installed package has."""
    folder = tmp_path_factory.mktemp("package")
    text = (repository / "docs" / "models.md").read_text()
    (folder / f"{NAME}.py").write_text(re.search(r"## Adding an architecture.*?```python\n(.*?)```", text, re.S)[1])
    info = folder / f"{NAME}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{NAME} = {NAME}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        registry._load_entry_points.cache_clear()
        registry._load_entry_points()
        yield folder
        del registry._members["model"][NAME]
        sys.modules.pop(NAME)
        registry._load_entry_points.cache_clear()


def test_it_is_known(package):
    assert NAME in registry.names("model")


def test_every_trick(package):
    for option in options(NAME):
        require_every_parameter_moves(NAME, option)
        require_recurrent_equals_parallel(moved(NAME, **{**option, "norm": option.get("norm", "pre")}), 12)


def test_it_trains_and_resumes_bit_for_bit(package, tmp_path, monkeypatch, capsys):
    here = make_here(tmp_path, monkeypatch)
    assert here.run(*SETTINGS, study="whole") == 0
    here.kill_at(7, *SETTINGS)
    assert here.run(*SETTINGS) == 0
    assert "resuming from step 6" in capsys.readouterr().out
    assert numbers(here.folder()) == numbers(here.folder("whole"))
    assert here.run(*SETTINGS, "dry_run=true") == 0
    assert "parameters" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "compare", str(here.folder("whole")), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{package}:{Path.cwd()}", "PATH": "", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert NAME in done.stdout
