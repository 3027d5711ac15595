"""Run directories, read and taken. Importing this package imports no torch."""

from rwkv_lab.runs.listing import names, table
from rwkv_lab.runs.run import FORMAT, STATUSES, Run, find, is_run, last_row, load, read_metrics

__all__ = ["FORMAT", "STATUSES", "Run", "find", "is_run", "last_row", "load", "names", "read_metrics", "table"]
