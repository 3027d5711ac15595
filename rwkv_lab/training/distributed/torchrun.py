"""The environment in which torchrun, or run.py in its place, starts the ranks of a run. Imports no torch."""

import os
import re

_RUN_ID = "TORCHELASTIC_RUN_ID"

# Exit codes of a run all of whose ranks end alike and have left their process group.
ENDED_TOGETHER = (0, 130)
LOST_TOUCH = 3  # how a rank ends whose counterpart is gone, so that one sentence can be said for all of them


def ranks() -> int:
    """Return the number of ranks; 0 for a process that neither torchrun nor run.py has started as one of them."""
    return int(os.environ.get("WORLD_SIZE", 0)) if _RUN_ID in os.environ else 0


def rank() -> int:
    """Return this process's number among the ranks; 0 if it is alone."""
    return int(os.environ.get("RANK", 0)) if ranks() else 0


def local_rank() -> int:
    """Return this process's number among the ranks on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def run_id(launcher: int) -> str:
    """Return the id elastic uses for a run whose ranks the process ``launcher`` starts."""
    return f"run.py-{launcher}"


def launcher() -> int | None:
    """Return the process id of the run.py that started this rank; None if torchrun did."""
    found = re.fullmatch(r"run\.py-(\d+)", os.environ.get(_RUN_ID, ""))
    return int(found[1]) if found else None
