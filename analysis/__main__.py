"""Entry of ``python -m analysis``."""

import io
import sys

from analysis.cli import main
from rwkv_lab.config.errors import main_guard

if __name__ == "__main__":
    # A character that the terminal's encoding lacks, such as ±, is printed as a question mark.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
