"""What a user did wrong, said in one plain sentence."""

import difflib
import sys
from collections.abc import Callable, Iterable


class Mistake(Exception):
    """A user's mistake; its message is one sentence that names the key or file, what is wrong and what is allowed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest of ``known``, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def main_guard(main: Callable[[], int | None]) -> int:
    """Runs a command line: its exit code, 2 after a ``Mistake`` (one line on standard error), 130 after Ctrl-C."""
    try:
        return main() or 0
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
