"""The registry of components: what can be chosen by name, and where each is found.

A component is one file with a config dataclass (or, for laws and metrics, one object) under ``@register(kind, name)``.
The files of a kind's home are found by scanning its folder; another package adds its own through the entry point group
``rwkv_lab.components``, whose values are modules that register when imported. Importing the components of this package
imports no torch.
"""

import functools
import importlib
import importlib.abc
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from rwkv_lab.config.errors import UserError, nearest

ENTRY_POINTS = "rwkv_lab.components"
T = TypeVar("T")


class Kind(NamedTuple):
    """A kind of component."""

    home: str  # package, or module, that registers this project's members
    group: bool  # whether a Hydra group of the same name chooses one
    also: tuple[str, ...] = ()  # further packages whose modules may register members


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "model": Kind("rwkv_lab.models", True),
        "data": Kind("rwkv_lab.data.corpora", True),
        "tokenizer": Kind("rwkv_lab.data.tokenizers", True),
        "optimizer": Kind("rwkv_lab.training.optim", True),
        "schedule": Kind("rwkv_lab.training.schedules", True),
        "objective": Kind("rwkv_lab.training.objectives", True),
        "tracker": Kind("rwkv_lab.tracking", True),
        "metric": Kind("rwkv_lab.training.metrics", False),
        "stop": Kind("rwkv_lab.sweeps.stopping", True, ("analysis",)),
        "law": Kind("analysis.laws", False),
    }
)

_members: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str) -> Callable[[T], T]:
    """Return a decorator that adds its class, function or object to ``kind`` as ``name``.

    Raises ValueError for an unknown kind and for a name that another component has.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of component {kind!r}: choose one of {', '.join(KINDS)}")

    def add(member: T) -> T:
        present = _members[kind].get(name)
        if present is not None and _source(present) != _source(member):
            raise ValueError(f"{kind} {name!r} is registered twice, by {present!r} and by {member!r}")
        _members[kind][name] = member
        return member

    return add


def members(kind: str) -> Mapping[str, Any]:
    """Return every component of ``kind`` by name, sorted."""
    _discover(kind)
    return dict(sorted(_members[kind].items()))


def names(kind: str) -> list[str]:
    """Return the names of the components of ``kind``, sorted."""
    return list(members(kind))


def get(kind: str, name: str, key: str | None = None) -> Any:
    """Return the component ``name`` of ``kind``.

    Raises UserError, which starts with ``key`` (default: the kind) and lists the names, if there is none.
    """
    known = members(kind)
    if name not in known:
        likely = nearest(str(name), known)
        raise UserError(f"{key or kind}={name} is unknown{likely}: choose one of {', '.join(known)}")
    return known[name]


def _source(member: object) -> object:
    """Return module and name of a class or function, equal for the same definition imported again; else the object."""
    name = getattr(member, "__qualname__", None)
    return (getattr(member, "__module__", ""), name) if name else member


@functools.cache
def _discover(kind: str) -> None:
    for home in (KINDS[kind].home, *KINDS[kind].also):
        if importlib.util.find_spec(home) is None:
            continue
        package = importlib.import_module(home)
        for found in pkgutil.iter_modules(getattr(package, "__path__", ())):
            name = f"{home}.{found.name}"
            if f'register("{kind}"' in _text(name):
                importlib.import_module(name)
    _load_entry_points()


@functools.cache
def _load_entry_points() -> None:
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            source = point.dist.name if point.dist else point.value
            raise UserError(
                f"the components of {source} ({point.value}) cannot be imported: {type(error).__name__}: {error}; "
                f"mend or uninstall {source}"
            ) from error


def _text(module: str) -> str:
    """Return the source of ``module`` without importing it; an empty string for one that has none."""
    spec = importlib.util.find_spec(module)
    source = spec.loader.get_source(module) if spec and isinstance(spec.loader, importlib.abc.InspectLoader) else None
    return source or ""
