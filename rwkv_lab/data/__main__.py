"""``python -m rwkv_lab.data``, the same as ``rwkv-lab data``."""

import sys

from rwkv_lab.cli.data import main
from rwkv_lab.config.errors import main_guard

if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
