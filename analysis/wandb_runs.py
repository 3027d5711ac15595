"""Curves of wandb runs: online by their path, or from an offline file read back with wandb's own tool."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import curves, tables
from rwkv_lab.errors import Mistake

TIMEOUT = 30  # seconds to wait for wandb


def load_online(path: str, column: str | None = None) -> "curves.LossCurve":
    """The run at ENTITY/PROJECT/ID; Mistake where it cannot be reached."""
    import wandb

    try:
        run = wandb.Api(timeout=TIMEOUT).run(path)
        rows = list(run.scan_history())
        config = dict(run.config)
    except (wandb.Error, ValueError) as error:
        raise Mistake(f"wandb:{path}: cannot be read ({str(error).splitlines()[0]})") from error
    return from_history(rows, config, where=f"wandb:{path}", name=path.rsplit("/", 1)[-1], column=column)


def load_offline(path: Path, column: str | None = None) -> "curves.LossCurve":
    """The run in a .wandb file, through ``wandb leet inspect --json``."""
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
        raise Mistake(f"{path}: no logged rows in this wandb file{f' ({said[-1]})' if said else ''}")
    return from_history(rows, config, where=str(path), name=path.stem, column=column)


def from_history(
    rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], *, where: str, name: str, column: str | None
) -> "curves.LossCurve":
    """A curve from logged rows; of a run of this laboratory, which its config shows, by the rules of metrics.csv."""
    columns = tables.to_columns(rows)
    if "schedule" in config and "trainer" in config:
        return curves.from_lab(columns, config, None, where=where, name=name, column=column)
    return curves.from_columns(columns, where=where, name=name, column=column, meta={"path": where})
