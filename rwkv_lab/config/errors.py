"""Users' mistakes as one plain sentence."""

import difflib
import io
import sys
from collections.abc import Callable, Iterable

from rwkv_lab.util.console import harmless, mute


class UserError(Exception):
    """A user's mistake; its message is one sentence that names the key or file, what is wrong and what is allowed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest of ``known``, or an empty string."""
    as_written = {each.lower(): each for each in known}
    wanted = str(name).lower()
    close = difflib.get_close_matches(wanted, as_written, n=1, cutoff=0.5)
    # lr for lr_init
    close = close or [each for each in as_written if wanted and each.startswith(f"{wanted}_")]
    return f" (did you mean '{as_written[close[0]]}'?)" if close else ""


def main_guard(main: Callable[[], int | None]) -> int:
    """Run a command and return its exit code: 2 after a ``UserError`` (one line on standard error), 130 after Ctrl-C.

    Exits with 1, without a traceback, if the output pipe is closed (e.g. ``| head``).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is not UTF-8 shows "?" instead of ending the command.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        mute(sys.stdout)
        return 1
    except UserError as mistake:
        print(f"error: {harmless(str(mistake))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        # pathlib's, for a user that the system does not know; libraries ask for their settings there.
        if "home directory" not in str(error):
            raise
        print("error: the home folder is not known: set HOME to a folder, e.g. HOME=/tmp", file=sys.stderr)
        return 2
