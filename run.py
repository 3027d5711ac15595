#!/usr/bin/env python
"""Trains what the configuration states: ``python run.py --help``."""

import gc
import sys

from rwkv_lab.cli import train

if __name__ == "__main__":
    code = train.main(sys.argv)
    # Python would walk all of torch's objects once more on its way out, which takes it as long as importing them.
    gc.freeze()
    sys.exit(code)
