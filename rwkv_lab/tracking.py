"""Experiment trackers: what a run reports elsewhere. A tracker's failure is one warning, never a failed run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rwkv_lab.config import Config
from rwkv_lab.console import warn

INIT_TIMEOUT_SECONDS = 10


class Tracker(Protocol):
    """Where logged rows go besides metrics.csv."""

    def log(self, row: dict[str, Any]) -> None: ...

    def finish(self, summary: dict[str, Any], exit_code: int) -> None: ...


class NoTracker:
    """Reports nowhere."""

    def log(self, row: dict[str, Any]) -> None:
        pass

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        pass


class WandbTracker:
    """Weights & Biases; after the first failure it warns once and stays silent."""

    def __init__(self, run: Any):
        self._run = run

    def _attempt(self, action: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            warn(f"wandb stopped working ({type(error).__name__}: {error}); metrics.csv has everything")
            self._run = None

    def log(self, row: dict[str, Any]) -> None:
        values = {key: value for key, value in row.items() if value is not None}
        self._attempt(lambda run: run.log(values, step=int(row["step"])))

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        def close(run: Any) -> None:
            run.summary.update({key: value for key, value in summary.items() if value is not None})
            run.finish(exit_code=exit_code)

        self._attempt(close)


def start(config: Config, folder: Path, run_id: str, resolved_config: dict[str, Any]) -> Tracker:
    """The configured tracker for the run in ``folder``; where wandb cannot start, a warning and none."""
    settings = config.tracker
    if settings.name == "none" or settings.mode == "disabled":
        return NoTracker()
    for mode in dict.fromkeys((settings.mode, "offline")):
        try:
            return WandbTracker(_init_wandb(config, folder, run_id, resolved_config, mode))
        except Exception as error:
            left = "trying offline" if mode == "online" else "going on without it"
            warn(f"wandb could not start in mode {mode} ({type(error).__name__}: {error}); {left}")
    return NoTracker()


def _init_wandb(config: Config, folder: Path, run_id: str, resolved_config: dict[str, Any], mode: str) -> Any:
    import wandb

    settings = config.tracker
    place = Path(settings.folder) if settings.folder else folder / "wandb"
    place.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=config.study,
        name=folder.name,
        id=f"{config.study}-{run_id}",
        job_type=config.model.name,
        tags=[config.model.name, config.data.name, f"seed {config.seed}", *settings.tags],
        config=resolved_config,
        mode=mode,  # type: ignore[arg-type]
        resume="allow" if mode == "online" else None,
        dir=str(place.parent if not settings.folder else place),
        settings=wandb.Settings(
            init_timeout=INIT_TIMEOUT_SECONDS, silent=True, console="off", quiet=True, x_disable_stats=True
        ),
    )
    run.define_metric("step")
    run.define_metric("tokens")
    run.define_metric("*", step_metric="tokens")
    return run
