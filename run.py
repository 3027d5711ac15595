#!/usr/bin/env python
"""Trains what the configuration states: ``python run.py --help``."""

import sys

from rwkv_lab import cli

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv))
