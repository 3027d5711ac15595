"""The command line of run.py: help, Hydra's entry point, and errors as one sentence."""

import os
import sys

from rwkv_lab.errors import Mistake, main_guard
from rwkv_lab.paths import REPOSITORY

FLAGS_FIRST = ("-m", "--multirun")


def main(argv: list[str]) -> int:
    """Runs ``argv`` (``run.py`` and its arguments); the exit code: 0, 1 failed or busy, 2 mistake, 130 stopped."""
    arguments = argv[1:]
    if "--help" in arguments or "-h" in arguments:
        from rwkv_lab.usage import usage

        print(usage(REPOSITORY))
        return 0
    # Hydra takes flags before overrides only.
    flags = [argument for argument in arguments if argument in FLAGS_FIRST]
    sys.argv = [argv[0], *flags, *(argument for argument in arguments if argument not in FLAGS_FIRST)]
    return main_guard(_compose_and_run)


def _compose_and_run() -> int:
    import hydra

    from rwkv_lab import job
    from rwkv_lab.compose import explain, prepare

    prepare()
    outcome = job.Outcome()

    # Hydra prints and exits by itself otherwise, with several lines and exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    entry = hydra.main(version_base="1.3", config_path=str(REPOSITORY / "conf"), config_name="config")
    try:
        entry(outcome.run)()
    except (Mistake, OSError, MemoryError):
        raise
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise Mistake(sentence) from None
    return outcome.exit_code
