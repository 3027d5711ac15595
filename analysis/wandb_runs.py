"""Logged rows and configuration of wandb runs: online by their path, or from an offline file with wandb's own tool."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_lab.config.errors import UserError

TIMEOUT = 30  # seconds to wait for wandb


class History(NamedTuple):
    """What a wandb run logged, one mapping a row, and its configuration."""

    rows: list[Mapping[str, Any]]
    config: dict[str, Any]


def read_online(path: str) -> History:
    """The run at ENTITY/PROJECT/ID; Mistake where it cannot be reached."""
    import wandb

    try:
        run = wandb.Api(timeout=TIMEOUT).run(path)
        return History(list(run.scan_history()), dict(run.config))
    except (wandb.Error, ValueError) as error:
        raise UserError(f"wandb:{path}: cannot be read ({str(error).splitlines()[0]})") from error


def read_offline(path: Path) -> History:
    """The run in a .wandb file, through ``wandb leet inspect --json``; Mistake where it logged nothing."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    rows: list[Mapping[str, Any]] = []
    config: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if record.get("type") == "history":
            rows.append(record["history"].get("item", {}))
        elif record.get("type") == "run":
            config |= record["run"].get("config", {}).get("update", {})
    if not rows:
        said = done.stderr.strip().splitlines()
        raise UserError(f"{path}: no logged rows in this wandb file{f' ({said[-1]})' if said else ''}")
    return History(rows, config)
