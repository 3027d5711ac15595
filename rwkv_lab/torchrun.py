"""What torchrun tells the processes it starts. Imports no torch."""

import os


def ranks() -> int:
    """How many processes torchrun started; 0 outside torchrun."""
    return int(os.environ.get("WORLD_SIZE", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))
