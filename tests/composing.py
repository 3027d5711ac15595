"""Composes configurations in the test's own process."""

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf

from rwkv_lab.config import check
from rwkv_lab.config.hydra import prepare
from rwkv_lab.config.schema import Config
from rwkv_lab.util.paths import REPOSITORY


@contextmanager
def hydra_context() -> Iterator[None]:
    """Hydra on this repository's conf/, as run.py sets it up."""
    from hydra import initialize_config_dir

    prepare()
    with initialize_config_dir(config_dir=str(REPOSITORY / "conf"), version_base="1.3"):
        yield


def compose(*overrides: str, hydra: bool = False) -> DictConfig:
    """The composed configuration; with ``hydra``, Hydra's own part too."""
    from hydra import compose as hydra_compose

    composed = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
    return composed if hydra else OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def checked(*overrides: str) -> Config:
    """The checked configuration."""
    return check.check(compose(*overrides))
