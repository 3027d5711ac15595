"""``python -m rwkv_lab.runs``, the same as ``rwkv-lab runs``."""

import sys

from rwkv_lab.cli.runs import main
from rwkv_lab.config.errors import main_guard

if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
