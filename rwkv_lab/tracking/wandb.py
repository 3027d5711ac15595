"""Weights & Biases: one run directory as one wandb run."""

import dataclasses
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import TrackerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.runs import Run, listing
from rwkv_lab.tracking.tracker import Tracker, Undelivered, writable

ANSWER_SECONDS = 2.0  # for a server's first answer
INIT_SECONDS = 5.0  # for opening a run on a server that answers
TAG_LENGTH, PROJECT_LENGTH, PROJECT_REFUSED = 64, 128, "/\\#?%:"  # wandb's own limits
AXES = ("step", "tokens", "seconds", "flops")
COSTS = ("parameters", "flops_per_token", "peak_memory_bytes")


@register("tracker", "wandb")
@dataclass
class WandbConfig(TrackerConfig):
    """Weights & Biases."""

    name: str = setting("wandb", identity=False)
    mode: Literal["offline", "online", "disabled"] = setting("offline", identity=False)  # offline needs no account
    project: str = setting("rwkv_lab", identity=False)  # wandb project
    entity: str | None = setting(None, identity=False)  # team or user; unset: your default
    tags: list[str] = setting(factory=list, identity=False)  # labels of the run
    folder: str | None = setting(None, identity=False)  # of offline files; unset: wandb/ in the run directory

    def check(self) -> None:
        for tag in self.tags:
            if not 1 <= len(tag) <= TAG_LENGTH or not tag.isprintable():
                raise UserError(
                    f"tracker.tags must be labels of 1 to {TAG_LENGTH} printable characters, e.g. [baseline,long] "
                    f"(got {tag!r}, {len(tag)} characters)"
                )
        if not 1 <= len(self.project) <= PROJECT_LENGTH or set(self.project) & set(PROJECT_REFUSED):
            raise UserError(
                f"tracker.project must have 1 to {PROJECT_LENGTH} characters and none of {' '.join(PROJECT_REFUSED)} "
                f"(got {self.project})"
            )

    @property
    def active(self) -> bool:
        return self.mode != "disabled"

    @property
    def remote(self) -> bool:
        return self.mode == "online"

    def offline(self) -> "WandbConfig | None":
        return dataclasses.replace(self, mode="offline") if self.remote else None

    def uploading(self, folder: Path) -> "WandbConfig | None":
        return dataclasses.replace(self, mode="online", folder=str(folder)) if self.active else None

    def open(self, run: Run, after: int) -> Tracker:
        """Return a wandb run with the run's configuration, group, name, id, job type and tags.

        Raises whatever wandb raises, and OSError if its folder cannot be written or the server does not answer.
        """
        import wandb

        # wandb itself would go to the temporary folder without a word.
        place = Path(self.folder).expanduser().absolute() if self.folder else run.path
        writable(place / "wandb")
        settings = wandb.Settings(
            init_timeout=INIT_SECONDS, silent=True, console="off", quiet=True, x_disable_stats=True, disable_git=True
        )
        library = wandb.setup(settings)
        if self.remote:
            require_answer(library.settings.base_url)
        config = run.config
        tags = [config["model"]["name"], config["data"]["name"], f"seed {config['seed']}"]
        try:
            opened = wandb.init(
                project=self.project,
                entity=self.entity,
                group=run.study,
                name=listing.name_of(run),
                id=re.sub(r"[^\w-]", "_", f"{run.study}-{run.manifest['id']}"),
                job_type=config["model"]["name"],
                tags=[*(tag[:TAG_LENGTH] for tag in tags), *self.tags],
                config={key: value for key, value in config.items() if key != "tracker"},
                mode="online" if self.remote else "offline",
                resume="allow" if self.remote else None,
                dir=str(place),
                settings=settings,
            )
        except Exception:
            # The service that failed to start the run would keep the run's id to itself.
            wandb.teardown(exit_code=1)
            raise
        for axis in AXES:
            opened.define_metric(axis)
        opened.define_metric("*", step_metric="tokens")
        return WandbRun(opened)


class WandbRun:
    """An open wandb run."""

    def __init__(self, opened: Any):
        self._opened = opened

    def log(self, row: Mapping[str, float]) -> None:
        """Log a row against its step."""
        whole = {name: int(row[name]) for name in ("step", "tokens") if name in row}
        # Committed at once: a row still pending would overwrite the summary at the end.
        self._opened.log({**row, **whole}, step=whole["step"], commit=True)

    def close(self, run: Run) -> None:
        """End the wandb run with the run's result as its summary; failed if the run is not complete."""
        manifest = run.manifest
        costs = {key: manifest.get(key) for key in COSTS}
        found = {key: value for key, value in (costs | (manifest.get("result") or {})).items() if value is not None}
        if (picture := run.path / "images.png").is_file():
            import wandb

            self._opened.log({"images": wandb.Image(str(picture))}, commit=True)
        self._opened.summary.update(found | {"status": run.status})
        internal_log = Path(self._opened.settings.log_internal)
        self._opened.finish(exit_code=0 if run.status == "complete" else 1)
        if refused := refusal(internal_log):
            raise Undelivered(refused)


def require_answer(base_url: str) -> None:
    """Raise OSError unless the server gives some answer, whatever it is, to a request as wandb sends them."""
    request = urllib.request.Request(
        f"{base_url.rstrip('/')}/graphql", b'{"query":"{__typename}"}', {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        # An answer, if only that a key is needed.
        return
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", error)
        raise ConnectionError(f"{base_url} does not answer: {cause}") from None


def refusal(internal_log: Path) -> str | None:
    """Return why the server did not take rows, as wandb's internal log of a finished run has it; None if it took them.

    ``finish`` itself reports nothing of it.
    """
    try:
        lines = internal_log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        text = str(entry.get("msg", ""))
        if str(entry.get("level", "")).startswith("ERROR") and text.startswith("filestream: fatal error"):
            return text.rpartition("filestream: ")[2].partition(" url=")[0]
    return None
