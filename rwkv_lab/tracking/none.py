"""No tracker."""

from dataclasses import dataclass

from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import TrackerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.runs import Run
from rwkv_lab.tracking.tracker import Tracker


@register("tracker", "none")
@dataclass
class NoneConfig(TrackerConfig):
    """No tracker; metrics.csv is written all the same."""

    name: str = setting("none", identity=False)

    @property
    def active(self) -> bool:
        return False

    def open(self, run: Run, after: int) -> Tracker:
        raise RuntimeError("tracker=none cannot be opened")
