"""Language models by name: ``build("rwkv_v4", vocab_size=136, n_layer=4)``.

An architecture is one file here, or in another package, with a config under ``@register("model", NAME)``. Importing
this package and the configs imports no torch; the functions below do so when first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkv_lab.models.factory import build, check, check_init, construct, load, save, skeleton
    from rwkv_lab.models.lm import decay_parameters, flops_per_token
    from rwkv_lab.models.opening import open_model
    from rwkv_lab.models.warm_start import initialise_from

__all__ = [
    "build",
    "check",
    "check_init",
    "construct",
    "decay_parameters",
    "flops_per_token",
    "initialise_from",
    "load",
    "open_model",
    "save",
    "skeleton",
]

_HOME = {
    "flops_per_token": "lm",
    "decay_parameters": "lm",
    "initialise_from": "warm_start",
    "open_model": "opening",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'factory')}"), name)
