"""What each of Hydra's launchers means for the jobs it starts: how many at once, with how many threads, seen or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What to install for the options of conf/hydra, by the plugin each extends.
EXTRAS = {"joblib": "sweep", "submitit_local": "sweep", "submitit_slurm": "sweep", "ray": "ray", "optuna": "search"}


@dataclass(frozen=True)
class Manner:
    """How a launcher runs the jobs of a sweep."""

    threads: int | None  # torch threads of a job, so that jobs side by side share the cores; None: all of them
    batch: int | None  # jobs handed over together; None: all
    visible: bool = False  # a job may use the terminal, being alone on it
    tied: bool = False  # the worker processes end with the one that started them
    shares_gpus: bool = False  # jobs side by side on one machine choose a GPU each
    detached: bool = False  # jobs go on when the terminal is gone


def manner(launcher: Mapping[str, Any], cores: int) -> Manner:
    """The manner of the launcher configured by ``launcher`` on a machine of ``cores`` cores."""
    kind = str(launcher["_target_"]).rpartition(".")[2]
    cpus = launcher.get("cpus_per_task")
    if kind == "JoblibLauncher":
        wanted = launcher.get("n_jobs") or 1
        at_once = max(1, cores + 1 + wanted) if wanted < 0 else wanted
        return Manner(max(1, cores // at_once), None, tied=True, shares_gpus=True)
    if kind == "LocalLauncher":
        # The local executor starts everything it is given at once.
        return Manner(cpus or 1, max(1, cores // (cpus or 1)), detached=True)
    if kind == "SlurmLauncher":
        return Manner(cpus, None, detached=True)
    if kind.startswith("Ray"):
        remote = (launcher.get("ray") or {}).get("remote") or {}
        return Manner(max(1, int(remote.get("num_cpus") or 1)), None)
    return Manner(None, 1, visible=True)
