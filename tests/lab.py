"""A throw-away checkout to run commands in: runs/ lies beside the code, so tests leave the one under test alone."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rwkv_lab.ops.cache import default_cache

CODE = ("rwkv_lab", "hydra_plugins", "analysis", "conf", "csrc")

# One layer of 16 channels over 16 tokens: start-up takes longer than training it.
TINY = (
    "model.n_layer=1",
    "model.n_embd=16",
    "model.ctx_len=16",
    "trainer.threads=1",
    "tracker=none",
)


@dataclass(frozen=True)
class Lab:
    """A copy of the code with a runs/ and a data cache of its own; compiled kernels are shared with the user's."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_"))}
        return kept | {"XDG_CACHE_HOME": str(self.root / "cache")}

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        """``python ARGUMENTS...`` in the checkout, its output piped as text."""
        settings = {"cwd": self.root, "env": self.environment, "text": True}
        settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([sys.executable, *arguments], **settings)

    def python(self, *arguments: str, expect: int = 0, timeout: float = 400, **options) -> subprocess.CompletedProcess:
        """Waits for ``python ARGUMENTS...`` and asserts its exit code."""
        process = self.start(*arguments, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == expect, f"{arguments}: exit code {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, *overrides: str, expect: int = 0, **options) -> subprocess.CompletedProcess:
        """``python run.py OVERRIDES...``; its exit code must be ``expect``."""
        return self.python("run.py", *overrides, expect=expect, **options)

    def only_run(self, study: str) -> Path:
        """The directory of the one run of a study."""
        (manifest,) = (self.runs / study).glob("*/run.json")
        return manifest.parent


def make_lab(repository: Path, root: Path) -> Lab:
    """Copies what running needs from ``repository`` into the new folder ``root``."""
    for name in CODE:
        shutil.copytree(repository / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "experiments").mkdir()
    for study in (repository / "experiments").glob("*.yaml"):
        shutil.copy(study, root / "experiments")
    shutil.copy(repository / "run.py", root)
    kernels = default_cache()
    kernels.mkdir(parents=True, exist_ok=True)
    (root / "cache" / "rwkv_lab").mkdir(parents=True)
    (root / "cache" / "rwkv_lab" / "ops").symlink_to(kernels)
    return Lab(root)
