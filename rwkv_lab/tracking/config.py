"""Settings of the trackers."""

from dataclasses import dataclass
from typing import Literal

from rwkv_lab.config import kinds
from rwkv_lab.config.fields import setting
from rwkv_lab.config.registry import register


@register("tracker", "none")
@register("tracker", "wandb")
@dataclass
class TrackerConfig(kinds.TrackerConfig):
    """Weights & Biases, or none."""

    name: str = setting("wandb", identity=False)
    mode: Literal["offline", "online", "disabled"] = setting("offline", identity=False)
    project: str = setting("rwkv_lab", identity=False)  # the tracker's project
    entity: str | None = setting(None, identity=False)  # the tracker's team or user; unset: your default
    tags: list[str] = setting(factory=list, identity=False)  # labels of the run
    folder: str | None = setting(None, identity=False)  # of offline files; unset: wandb/ in the run directory
