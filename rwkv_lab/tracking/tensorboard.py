"""TensorBoard event files in the run directory."""

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import TrackerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.runs import Run
from rwkv_lab.tracking.tracker import Tracker, writable


@register("tracker", "tensorboard")
@dataclass
class TensorBoardConfig(TrackerConfig):
    """TensorBoard event files."""

    name: str = setting("tensorboard", identity=False)
    folder: str | None = setting(None, identity=False)  # of the event files; unset: tensorboard/ in the run directory

    def check(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError("tracker=tensorboard needs a package that is missing: pip install 'rwkv_lab[tensorboard]'")

    def open(self, run: Run, after: int) -> Tracker:
        """Return a tracker of event files; those of earlier sessions count up to update ``after``."""
        folder = Path(self.folder).expanduser() / run.study / run.name if self.folder else run.path / "tensorboard"
        return TensorBoardRun(writable(folder), after)


class TensorBoardRun:
    """One run's event files, by TensorBoard's own writer, which needs no torch."""

    def __init__(self, folder: Path, after: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))
        if after:
            # Rows that an earlier session has logged behind its checkpoint are logged again.
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=after + 1, session_log=start))

    def log(self, row: Mapping[str, float]) -> None:
        """Write each column but ``step``, against the step."""
        self._write(int(row["step"]), {name: value for name, value in row.items() if name != "step"})

    def observe(self, line: Mapping[str, Any]) -> None:
        """Write the gradient norms by layer."""
        norms = {f"grad_norm/{part}": value for part, value in (line.get("grad_norm") or {}).items()}
        if norms:
            self._write(int(line["step"]), norms)

    def close(self, run: Run) -> None:
        """Write the numbers of the result as ``result/NAME``."""
        result = run.manifest.get("result") or {}
        numbers = {f"result/{name}": value for name, value in result.items() if isinstance(value, (int, float))}
        self._write(int(run.manifest.get("steps") or 0), numbers)
        self._writer.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
