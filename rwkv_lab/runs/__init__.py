"""Run directories, read and taken. Importing this package imports no torch."""

from rwkv_lab.runs.listing import names, table
from rwkv_lab.runs.manifest import FORMAT
from rwkv_lab.runs.metrics import last_row, last_step, read_metrics
from rwkv_lab.runs.run import STATUSES, Run, find, is_run, load

__all__ = [
    "FORMAT",
    "STATUSES",
    "Run",
    "find",
    "is_run",
    "last_row",
    "last_step",
    "load",
    "names",
    "read_metrics",
    "table",
]
