"""``python -m rwkv_lab.tracking``, the same as ``rwkv-lab tracking``."""

import sys

from rwkv_lab.cli.tracking import main
from rwkv_lab.config.errors import main_guard

if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
