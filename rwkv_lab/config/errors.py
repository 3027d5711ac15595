"""What a user did wrong, said in one plain sentence."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import TextIO


class UserError(Exception):
    """A user's mistake; its message is one sentence that names the key or file, what is wrong and what is allowed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest of ``known``, or an empty string."""
    as_written = {each.lower(): each for each in known}
    wanted = str(name).lower()
    close = difflib.get_close_matches(wanted, as_written, n=1, cutoff=0.5)
    # lr for lr_init
    close = close or [each for each in as_written if wanted and each.startswith(f"{wanted}_")]
    return f" (did you mean '{as_written[close[0]]}'?)" if close else ""


def main_guard(main: Callable[[], int | None]) -> int:
    """Runs a command line: its exit code, 2 after a ``UserError`` (one line on standard error), 130 after Ctrl-C.

    A reader that has seen enough, as in ``... | head``, ends it quietly with 1.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        mute(sys.stdout)
        return 1
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def mute(stream: TextIO) -> None:
    """Sends what is still written to ``stream`` nowhere, so that a closed pipe or terminal raises no further errors."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
