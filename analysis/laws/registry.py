"""Registry of the laws: every module of ``analysis.laws`` that calls ``register`` adds its own."""

import importlib
import pkgutil
from functools import cache

import analysis.laws
from analysis.laws.law import Law
from rwkv_lab.errors import Mistake, nearest

_registered: dict[str, Law] = {}


def register(law: Law) -> Law:
    """Add ``law`` under its name and under the names it had before."""
    for name in (law.name, *law.formerly):
        if _registered.setdefault(name, law) is not law:
            raise ValueError(f"two laws are registered as '{name}'")
    return law


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(analysis.laws.__path__):
        importlib.import_module(f"{analysis.laws.__name__}.{module.name}")


def laws() -> tuple[Law, ...]:
    """Every registered law, by name."""
    _discover()
    return tuple(law for name, law in sorted(_registered.items()) if name == law.name)


def get(name: str) -> Law:
    """Return the law called ``name``, now or formerly; Mistake if there is none."""
    _discover()
    if name not in _registered:
        known = [law.name for law in laws()]
        raise Mistake(f"law '{name}' is unknown{nearest(name, known)}; choose one of {', '.join(known)}")
    return _registered[name]


def fittable() -> tuple[str, ...]:
    """Names a user can fit: ``auto``, which is the mixture, and every law that can be fitted alone."""
    return ("auto", *(law.name for law in laws() if law.alone))


def check_fittable(name: str) -> None:
    """Refuse a ``name`` that is not one of ``fittable()``."""
    known = fittable()
    if name not in known:
        raise Mistake(f"law '{name}' is unknown{nearest(name, known)}; choose one of {', '.join(known)}")


def mixture() -> tuple[str, ...]:
    """Names of the laws of the default mixture."""
    return tuple(law.name for law in laws() if law.in_mixture)


def rivals(name: str) -> tuple[str, ...]:
    """Names of the other laws whose spread widens the intervals of the law ``name`` fitted alone."""
    return tuple(law.name for law in laws() if law.rival and law.name != name)
