"""Language models by name: `build("rwkv_v4", vocab_size=136, n_layer=4)`.

The registry and the configurations import no torch; the functions below do so when first used.
"""

from typing import TYPE_CHECKING, Any

from rwkv_lab.models.config import check

if TYPE_CHECKING:
    from rwkv_lab.models.factory import build
    from rwkv_lab.models.flops import flops_per_token
    from rwkv_lab.models.lm import decay_parameters
    from rwkv_lab.models.weights import initialise_from, load, save

__all__ = ["build", "check", "decay_parameters", "flops_per_token", "initialise_from", "load", "save"]

_HOME = {"build": "factory", "flops_per_token": "flops", "decay_parameters": "lm"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'weights')}"), name)
