"""Provenance of a run: code, versions, hardware, and the settings that runs of one fit share."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import rwkv_lab
from rwkv_lab.runs.listing import flat
from rwkv_lab.util.paths import CHECKOUT, CSRC, PACKAGE

CODE = {"rwkv_lab": (PACKAGE, "*.py"), "csrc": (CSRC, "*.*")}


def code_fingerprint() -> str:
    """sha256 over the sources that can change a result, rwkv_lab/ and csrc/, so that other commits do not count.

    Equal for a checkout and the copy installed from it.
    """
    digest = hashlib.sha256()
    for name, (folder, pattern) in CODE.items():
        for path in sorted(folder.rglob(pattern)):
            if path.is_file():
                digest.update(f"{name}/{path.relative_to(folder).as_posix()}".encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _git(*arguments: str) -> bytes | None:
    if CHECKOUT is None:
        # The repository around an installed copy is another project's.
        return None
    try:
        done = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def git_state() -> dict[str, str | None]:
    """The commit and, where rwkv_lab/ or csrc/ differ from it, a hash of the difference; None outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    difference = _git("diff", "HEAD", "--", *CODE) or b""
    untracked = _git("ls-files", "--others", "--exclude-standard", "--", *CODE) or b""
    changed = difference + untracked
    return {
        "commit": commit.decode().strip(),
        "dirty": hashlib.sha256(changed).hexdigest()[:16] if changed.strip() else None,
    }


def versions() -> dict[str, str]:
    """The packages a number depends on."""
    names = ("torch", "numpy", "scipy", "hydra-core")
    own = {"python": platform.python_version(), "rwkv_lab": rwkv_lab.__version__}
    return own | {name: metadata.version(name) for name in names}


def processor_name() -> str:
    """The processor's model as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# Groups and keys; schedule, peak, length and seed may differ.
SHARED = ("model", "data", "tokenizer", "optimizer", "objective", "trainer.batch_size", "trainer.clip")
ASIDE = ("data.cache_dir",)  # cannot change a result


def setup(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys of a plain ``config`` that runs of one fit share."""
    return {
        key: value
        for key, value in flat(config).items()
        if key not in ASIDE and any(key == one or key.startswith(one + ".") for one in SHARED)
    }


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two setups differ, in order; a key that one lacks, as an earlier version's may, does not
    count."""
    return [key for key in sorted({*left} & {*right}) if left[key] != right[key]]


def recipe(overrides: list[str]) -> list[str]:
    """Return the overrides that another run of the same setup repeats: without schedule, length, seed and study."""
    aside = ("schedule", "seed", "study", "trainer.steps", "trainer.tokens", "rerun", "dry_run", "branch")
    return [one for one in overrides if not any(one.startswith((f"{a}=", f"{a}.")) for a in aside)]
