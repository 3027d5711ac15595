"""Folders of the checkout or of the installed package, and the command that starts it again."""

import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]  # rwkv_lab/
IMPORT_ROOT = PACKAGE.parent  # folder to put on sys.path: the checkout or site-packages
CHECKOUT = IMPORT_ROOT if (IMPORT_ROOT / "conf" / "config.yaml").is_file() else None

REPOSITORY = CHECKOUT or PACKAGE  # folder of the three below
CONF = REPOSITORY / "conf"
CSRC = REPOSITORY / "csrc"
EXPERIMENTS = REPOSITORY / "experiments"


def runs_dir(value: str | None = None) -> Path:
    """Return the folder of all runs: ``value``, else runs/ of the checkout, else runs/ of the current folder."""
    return Path(value).expanduser().absolute() if value else (CHECKOUT or Path.cwd()) / "runs"


def as_typed(text: str) -> str:
    """Return a message with its commands, written as in a checkout, as this copy's user types them.

    Outside a checkout ``python run.py`` is ``rwkv-lab train``, and ``python -m analysis fit`` is ``rwkv-lab fit``.
    """
    if CHECKOUT:
        return text
    text = text.replace("python run.py", "rwkv-lab train")
    return re.sub(r"python -m (?:analysis |rwkv_lab\.)(\w+)", r"rwkv-lab \1", text)


def train_command() -> list[str]:
    """Return the command that trains, in whatever folder it is started; overrides are appended to it."""
    if CHECKOUT:
        return [sys.executable, str(CHECKOUT / "run.py")]
    # -P: modules of the current folder must not hide those of the package's dependencies.
    return [sys.executable, "-P", "-m", "rwkv_lab", "train"]
