"""TensorBoard event files in the run directory."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import TrackerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.runs import Run
from rwkv_lab.tracking.tracker import Tracker, writable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(self.folder).expanduser() / run.study / run.name if self.folder else run.path / "tensorboard"
        return TensorBoardRun(SummaryWriter(str(writable(folder)), purge_step=after + 1 if after else None))


class TensorBoardRun:
    """One run's event files."""

    def __init__(self, writer: "SummaryWriter"):
        self._writer = writer

    def log(self, row: Mapping[str, float]) -> None:
        """Write each column but ``step``, against the step."""
        step = int(row["step"])
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)

    def close(self, run: Run) -> None:
        """Write the numbers of the result as ``result/NAME`` and the configuration as text."""
        result = run.manifest.get("result") or {}
        for name, value in result.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"result/{name}", value, run.manifest.get("steps") or 0)
        text = (run.path / "config.yaml").read_text(encoding="utf-8")
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))
        self._writer.close()
