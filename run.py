#!/usr/bin/env python
"""Train what the configuration states: ``python run.py --help``."""

import sys

from rwkv_lab.cli.main import leave
from rwkv_lab.cli.train import main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
