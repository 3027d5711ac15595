#!/usr/bin/env python
"""Train what the configuration states: ``python run.py --help``."""

import sys

from rwkv_lab.cli import train

if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:]))
