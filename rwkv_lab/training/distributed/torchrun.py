"""What torchrun, or run.py in its place, tells the processes it starts. Imports no torch."""

import os
import re

_RUN_ID = "TORCHELASTIC_RUN_ID"

# Exit codes of a run all of whose ranks end alike and have left their process group.
ENDED_TOGETHER = (0, 130)


def ranks() -> int:
    """How many processes there are on the run; 0 where neither torchrun nor run.py started this one as one of them."""
    return int(os.environ.get("WORLD_SIZE", 0)) if _RUN_ID in os.environ else 0


def rank() -> int:
    """This process's number among them; 0 where it is alone."""
    return int(os.environ.get("RANK", 0)) if ranks() else 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def run_id(launcher: int) -> str:
    """What elastic is to call a run whose processes the process ``launcher`` starts."""
    return f"run.py-{launcher}"


def launcher() -> int | None:
    """The process id of the run.py that started this rank; None where torchrun did."""
    found = re.fullmatch(r"run\.py-(\d+)", os.environ.get(_RUN_ID, ""))
    return int(found[1]) if found else None
