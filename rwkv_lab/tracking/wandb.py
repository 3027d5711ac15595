"""One run directory as a Weights & Biases run."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rwkv_lab.runs import Run

INIT_SECONDS = 10.0
TAG_LENGTH = 64
AXES = ("step", "tokens", "seconds", "flops")
COSTS = ("parameters", "flops_per_token", "peak_memory_bytes")


def open_run(run: Run, mode: str, place: Path, project: str | None = None, entity: str | None = None) -> Any:
    """A wandb run, ``online`` or ``offline``, with the run's configuration, group, name, id, job type and tags.

    Files go to ``place``/wandb. Raises whatever wandb raises, and OSError where ``place`` cannot be written.
    """
    import wandb

    # wandb itself would go to the temporary folder without a word.
    (place / "wandb").mkdir(parents=True, exist_ok=True)
    probe = place / "wandb" / ".probe"
    probe.touch()
    probe.unlink()
    settings = wandb.Settings(
        init_timeout=INIT_SECONDS, silent=True, console="off", quiet=True, x_disable_stats=True, disable_git=True
    )
    wandb.setup(settings)
    config = run.config
    tracker = config["tracker"]
    tags = [config["model"]["name"], config["data"]["name"], f"seed {config['seed']}", *tracker["tags"]]
    opened = wandb.init(
        project=project or tracker["project"],
        entity=entity or tracker["entity"],
        group=run.study,
        name=run.name,
        id=re.sub(r"[^\w-]", "_", f"{run.study}-{run.manifest['id']}"),
        job_type=config["model"]["name"],
        tags=[tag[:TAG_LENGTH] for tag in tags],
        config={key: value for key, value in config.items() if key != "tracker"},
        mode=mode,  # type: ignore[arg-type]
        resume="allow" if mode == "online" else None,
        dir=str(place),
        settings=settings,
    )
    for axis in AXES:
        opened.define_metric(axis)
    opened.define_metric("*", step_metric="tokens")
    return opened


def reason(error: Exception) -> str:
    """What wandb complains of, in one line: the first of its message, or the one behind pydantic's heading."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = ": ".join(lines[1:3]).partition(" [type=")[0] if "validation error" in lines[0] else lines[0]
    return (said or lines[0]).rstrip(".")[:200]


def log(opened: Any, rows: Iterable[Mapping[str, float]]) -> int:
    """Logs rows of metrics.csv against their step; the last step logged, 0 where there was no row."""
    last = 0
    for row in rows:
        last = int(row["step"])
        values = {key: value for key, value in row.items() if not math.isnan(value)}
        # Committed at once: a row still pending would overwrite the summary at the end.
        opened.log(values | {"step": last, "tokens": int(row["tokens"])}, step=last, commit=True)
    return last


def close(opened: Any, run: Run) -> None:
    """Ends the wandb run with the run's result as its summary; failed where the run is not complete."""
    manifest = run.manifest
    costs = {key: manifest.get(key) for key in COSTS}
    found = {key: value for key, value in (costs | (manifest.get("result") or {})).items() if value is not None}
    opened.summary.update(found | {"status": run.status})
    opened.finish(exit_code=0 if run.status == "complete" else 1)


def rows_after(run: Run, step: int) -> Iterator[dict[str, float]]:
    """The whole rows of metrics.csv behind update number ``step``, with the training FLOPs spent where known."""
    columns = run.metrics()
    flops_per_token = run.manifest.get("flops_per_token")
    if flops_per_token and "tokens" in columns:
        columns["flops"] = columns["tokens"] * flops_per_token
    for i, done in enumerate(columns.get("step", ())):
        if done > step:
            yield {name: float(values[i]) for name, values in columns.items()}
