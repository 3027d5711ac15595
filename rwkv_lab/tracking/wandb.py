"""Weights & Biases: one run directory as one wandb run."""

import csv
import dataclasses
import json
import os
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import TrackerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.runs import Run, listing
from rwkv_lab.runs.metrics import OBSERVATIONS, read_observations
from rwkv_lab.tracking.tracker import FORECAST, Tracker, Undelivered, reason, writable
from rwkv_lab.util.paths import as_typed

ANSWER_SECONDS = 2.0  # for a server's first answer
INIT_SECONDS = 5.0  # for opening a run on a server that answers
TAG_LENGTH, PROJECT_LENGTH, PROJECT_REFUSED = 64, 128, "/\\#?%:"  # wandb's own limits
AXES = ("step", "tokens", "seconds", "flops")
COSTS = ("parameters", "flops_per_token", "peak_memory_bytes")
ID_LENGTH = 120  # wandb's own limit is 128
SAMPLE_COLUMNS = ("step", "prompt", "text", "val_bpb")
FILES = ("model.safetensors", "tokenizer.json", "config.yaml", "run.json")  # of the artifact


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
    histograms: bool = setting(False, identity=False)  # half-lives and gradient norms by layer at every evaluation
    samples: int = setting(0, low=0, identity=False)  # tokens of text for the table of samples at every evaluation
    artifact: bool = setting(False, identity=False)  # the model's files as an artifact when the run is complete

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
    def watches_weights(self) -> bool:
        return self.active and self.histograms

    @property
    def sample_tokens(self) -> int:
        return self.samples if self.active else 0

    @property
    def remote(self) -> bool:
        return self.mode == "online"

    def offline(self) -> "WandbConfig | None":
        return dataclasses.replace(self, mode="offline") if self.remote else None

    def uploading(self, folder: Path) -> "WandbConfig | None":
        return dataclasses.replace(self, mode="online", folder=str(folder)) if self.active else None

    def publish(self, folder: Path, title: str) -> str:
        """Record the CSV tables, PNG figures and HTML page of ``folder`` as a run of their own, the same each time."""
        import wandb

        library = wandb.setup(wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off", quiet=True))
        try:
            if self.remote:
                require_answer(library.settings.base_url)
            os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
            opened = wandb.init(
                project=self.project,
                entity=self.entity,
                group=title,
                name=f"compare {title}",
                id=re.sub(r"[^\w-]", "_", f"compare-{title}")[:ID_LENGTH],
                job_type="compare",
                mode="online" if self.remote else "offline",
                resume="allow" if self.remote else None,
                dir=str(writable(folder)),
                settings=wandb.Settings(disable_git=True, x_disable_stats=True),
            )
            found: dict[str, Any] = {}
            for file in sorted(folder.iterdir()):
                if file.suffix == ".csv":
                    head, *rows = csv.reader(file.read_text(encoding="utf-8").splitlines())
                    found[file.stem] = wandb.Table(
                        columns=list(head), data=[[_cell(cell) for cell in row] for row in rows]
                    )
                elif file.suffix == ".png":
                    found[file.stem] = wandb.Image(str(file))
                elif file.suffix == ".html":
                    found["page"] = wandb.Html(str(file), inject=False)
            opened.log(found)
            opened.finish()
        except (OSError, wandb.Error) as error:
            raise UserError(f"--to wandb: {reason(error)}") from None
        return f"wandb run compare {title}" if self.remote else f"{folder / 'wandb'} (wandb sync uploads it)"

    def open(self, run: Run, after: int) -> Tracker:
        """Return a wandb run with the run's configuration, group, name, id, job type and tags.

        Raises whatever wandb raises, and OSError if its folder cannot be written or the server does not answer.
        """
        import wandb

        # wandb itself would go to the temporary folder without a word.
        place = Path(self.folder).expanduser().absolute() if self.folder else run.path
        writable(place / "wandb")
        # Tables and artifacts wait there for their upload, else in the user's home; wandb has no setting for it.
        os.environ["WANDB_DATA_DIR"] = str(place / "wandb")
        settings = wandb.Settings(
            init_timeout=INIT_SECONDS,
            silent=True,
            console="off",
            quiet=True,
            disable_git=True,
            # Of the process that trains, and not of this one, which follows it.
            x_disable_stats=run.status != "running",
            x_stats_pid=int(run.manifest.get("pid") or 0),
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
        earlier = [line for line in read_observations(run.path / OBSERVATIONS) if line["step"] <= after]
        return WandbRun(opened, earlier, self.artifact)


class WandbRun:
    """An open wandb run."""

    def __init__(self, opened: Any, earlier: Sequence[Mapping[str, Any]] = (), artifact: bool = False):
        """``earlier`` are the observations that the table of samples begins with."""
        self._opened, self._artifact = opened, artifact
        self._samples = [_sample(line) for line in earlier if "sample" in line]
        self._observed: dict[str, Any] = {}

    def log(self, row: Mapping[str, float]) -> None:
        """Log a row against its step."""
        whole = {name: int(row[name]) for name in ("step", "tokens") if name in row}
        # Committed at once: a row still pending would overwrite the summary at the end.
        self._opened.log({**row, **whole, **self._observed}, step=whole["step"], commit=True)
        self._observed = {}

    def observe(self, line: Mapping[str, Any]) -> None:
        """Keep histograms, gradient norms and the table of samples for the row they belong to."""
        import wandb

        for part, norm in (line.get("grad_norm") or {}).items():
            self._observed[f"grad_norm/{part}"] = norm
        for part, found in (line.get("half_life") or {}).items():
            self._observed[f"log2_half_life/{part}"] = wandb.Histogram(np_histogram=(found["counts"], found["edges"]))
        if "sample" in line:
            self._samples.append(_sample(line))
            self._observed["samples"] = self._table()

    def _table(self) -> Any:
        import wandb

        return wandb.Table(columns=list(SAMPLE_COLUMNS), data=[list(row) for row in self._samples])

    def close(self, run: Run) -> None:
        """End the wandb run with the run's result as its summary; failed if the run is not complete."""
        manifest = run.manifest
        costs = {key: manifest.get(key) for key in COSTS}
        found = {key: value for key, value in (costs | (manifest.get("result") or {})).items() if value is not None}
        if (picture := run.path / "images.png").is_file():
            import wandb

            self._opened.log({"images": wandb.Image(str(picture))}, commit=True)
        self._opened.summary.update(found | _provenance(run) | {"status": run.status})
        if self._artifact and run.status == "complete":
            self._log_files(run)
        internal_log = Path(self._opened.settings.log_internal)
        self._opened.finish(exit_code=0 if run.status == "complete" else 1)
        if refused := refusal(internal_log):
            raise Undelivered(refused)

    def _log_files(self, run: Run) -> None:
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", f"{run.study}-{run.name}"), type="model")
        for name in FILES:
            if (file := run.path / name).is_file():
                artifact.add_file(str(file))
        self._opened.log_artifact(artifact)


def _cell(text: str) -> float | str | None:
    """Return a cell of a CSV file: a number where all of it is one, None for an empty one."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _sample(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return an observation's row of the table of samples."""
    return (line["step"], *(line["sample"].get(name) for name in SAMPLE_COLUMNS[1:]))


def _provenance(run: Run) -> dict[str, Any]:
    """Return what tells one run from another in a table: code, command, cost, forecast, scores on tasks."""
    manifest = run.manifest
    git, overrides = manifest.get("git") or {}, manifest.get("overrides") or []
    found: dict[str, Any] = {
        "commit": git.get("commit"),
        "dirty": git.get("dirty") is not None,
        "overrides": list(overrides),
        "command": as_typed("python run.py ") + shlex.join(map(str, overrides)),
    }
    if manifest.get("flops_per_token") and manifest.get("tokens"):
        found["flops"] = manifest["flops_per_token"] * manifest["tokens"]
    found |= {f"forecast_{name}": run.forecast[name] for name in FORECAST if name in run.forecast}
    for task, score in (manifest.get("evals") or {}).items():
        found |= {f"tasks/{task}/{key}": value for key, value in score.items() if isinstance(value, float)}
    return found


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
