"""Fields of config dataclasses: bounds and choices beside each, one validator, and the schema OmegaConf reads.

@dataclass
class CosineConfig:
    lr_init: float = setting(2e-3, low=0)  # rate after the warm-up
    shape: Literal["linear", "cosine"] = "linear"  # of the decay
"""

import ast
import dataclasses
import inspect
import io
import math
import textwrap
import tokenize
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.util.units import parse_count

Count = int | float | str | None  # a whole number as typed: 500000, 5e5, 500k, 2M; an int once validated


def whole(count: Count) -> int:
    """Return a validated count as the int it is."""
    if not isinstance(count, int):
        raise TypeError(f"{count!r} is not a validated count")
    return count


def setting(
    default: Any = dataclasses.MISSING,
    *,
    factory: Callable[[], Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    count: bool = False,
    file: bool = False,
    identity: bool = True,
    hash_default: bool = True,
) -> Any:
    """Return a dataclass field with bounds.

    low, high      smallest and largest value allowed; each number of a list is held to them
    above, below   the same, exclusive
    count          a positive whole number that may be written 2M or 5e5; validation turns it into an int
    file           names a file, which counts in the run's hash by its content
    identity       False: cannot change a run's result, so it is left out of the run's hash
    hash_default   False: left out of the hash at its default, as a field added later must be
    """
    metadata = {
        key: value
        for key, value in (("low", low), ("high", high), ("above", above), ("below", below))
        if value is not None
    }
    metadata |= {"count": True} if count else {}
    metadata |= {"file": True} if file else {}
    metadata |= {} if identity else {"identity": False}
    metadata |= {} if hash_default else {"hash_default": False}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field; ``MISSING`` of dataclasses if it has none."""
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def defaults(cls: type) -> dict[str, Any]:
    """Return the fields of a config dataclass with their defaults as plain data; ``???`` for required ones."""
    made = {field.name: default_of(field) for field in dataclasses.fields(cls)}
    return {name: dataclasses.asdict(value) if _is_instance(value) else value for name, value in made.items()}


def _is_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def instance(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Return ``cls`` filled from plain nested ``values``, each converted to its field's type.

    Raises UserError that names the key, starting with ``prefix`` such as ``model.``, for an unknown key, a value of
    another type and a required field that is not given.
    """
    hints = get_type_hints(cls)
    named = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in named:
            place = prefix.rstrip(".") or "the top level"
            raise UserError(f"{prefix}{key} is unknown{nearest(str(key), named)}: {place} has {', '.join(named)}")
    filled = {}
    for name, field in named.items():
        value = values[name] if name in values else default_of(field)
        if value in ("???", dataclasses.MISSING):
            raise UserError(f"{prefix}{name} must be given")
        filled[name] = convert(hints[name], value, f"{prefix}{name}")
    return cls(**filled)


def convert(hint: Any, value: Any, key: str) -> Any:
    """Return ``value`` as the type ``hint``; UserError names ``key`` and the type if it is another."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        parts = [part for part in arguments if part is not type(None)]
        if len(parts) == 1:
            return convert(parts[0], value, key)
        if isinstance(value, tuple(part for part in parts if isinstance(part, type))):
            return value
    elif origin is list and isinstance(value, (list, tuple)):
        return [convert(arguments[0], each, f"{key}[{i}]") for i, each in enumerate(value)]
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return instance(hint, value, f"{key}.")
    elif (plain := type(arguments[0]) if origin is Literal else hint) in _SCALARS and _is_scalar(value):
        try:
            # YAML reads the choice true as a truth value.
            return str(value).lower() if plain is str and isinstance(value, bool) else _SCALARS[plain](value)
        except (ValueError, OverflowError):
            pass
    if value is None:
        raise UserError(f"{key} cannot be null: it must be {_must_be(hint)}")
    raise UserError(f"{key} must be {_must_be(hint)} (got {_shown(value)})")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError


def _as_int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return int(value)


def _as_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


_SCALARS: dict[type, Callable[[Any], Any]] = {bool: _as_bool, int: _as_int, float: _as_float, str: str}
_NAMES: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a word or path"}


def _must_be(hint: Any) -> str:
    """Return what a value of type ``hint`` is, for a sentence."""
    if allowed := choices(hint):
        return f"one of {', '.join(allowed)}"
    if get_origin(hint) is list:
        return "a list, e.g. [1,2]"
    if hint == Count:
        return "a positive integer, e.g. 500000, 5e5, 500k or 2M"
    parts = [part for part in get_args(hint) or (hint,) if part is not type(None)]
    return " or ".join(_NAMES.get(part, "a group of fields, e.g. {key: value}") for part in parts)


def validate(config: Any, prefix: str = "") -> None:
    """Hold every field of a dataclass to its choices and bounds; counts become ints.

    Raises UserError that names the key, starting with ``prefix`` such as ``trainer.``, and what is allowed.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            validate(value, f"{key}.")
        elif isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
            for i, each in enumerate(value):
                validate(each, f"{key}[{i}].")
        elif value is not None:
            allowed = choices(hints[field.name])
            if allowed and value not in allowed:
                raise UserError(
                    f"{key}={value} is unknown{nearest(str(value), allowed)}: choose one of {', '.join(allowed)}"
                )
            if field.metadata.get("count"):
                setattr(config, field.name, _count(key, value))
            for number in value if isinstance(value, list) else [value]:
                _within(key, value, number, field.metadata)


def _count(key: str, value: int | float | str) -> int:
    try:
        return parse_count(value)
    except ValueError as error:
        raise UserError(f"{key} must be {error}") from None


def _within(key: str, value: Any, number: Any, metadata: Any) -> None:
    """Raise UserError if ``number``, all or part of ``value``, is not finite or lies outside the field's bounds."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return
    inside = math.isfinite(number)
    inside &= number >= metadata.get("low", -math.inf) and number <= metadata.get("high", math.inf)
    inside &= number > metadata.get("above", -math.inf) and number < metadata.get("below", math.inf)
    if not inside:
        raise UserError(f"{key} must be {bounds(metadata) or 'a finite number'} (got {value})")


def bounds(metadata: Any) -> str:
    """Return the bounds of a field in words: ``at least 0``, ``above 0 and at most 1``; empty without any."""
    words = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
    return " and ".join(f"{word} {metadata[key]:g}" for key, word in words.items() if key in metadata)


def choices(hint: Any) -> list[str]:
    """Return the values a ``Literal`` hint, or one with None beside it, allows; empty for other types."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [str(value) for part in parts if get_origin(part) is Literal for value in get_args(part)]


class Described(NamedTuple):
    """A field for a reader."""

    name: str
    type: str  # "int", "one of pre, post", "list of float"
    default: str
    bounds: str
    comment: str


def describe(cls: type) -> list[Described]:
    """Return every field of a config dataclass with its type, default, bounds and the comment beside it."""
    hints, comments = get_type_hints(cls), _comments(cls)
    described = []
    for field in dataclasses.fields(cls):
        default = default_of(field)
        shown = "required" if default in ("???", dataclasses.MISSING) else _shown(default)
        limits = "positive" if field.metadata.get("count") else bounds(field.metadata)
        described.append(
            Described(field.name, _type_name(hints[field.name]), shown, limits, comments.get(field.name, ""))
        )
    return described


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(_shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type_name(hint: Any) -> str:
    if hint == Count:
        return "count"
    if allowed := choices(hint):
        return "|".join(allowed)
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_type_name, parts))
    if get_origin(hint) is list:
        return f"list of {_type_name(parts[0])}"
    return str(hint.__name__)


def _comments(cls: type) -> dict[str, str]:
    """Return the comment at the end of each field's line, over the classes ``cls`` inherits fields from."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        lines = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                beside = lines.get(node.end_lineno or 0, lines.get(node.lineno - 1, ""))
                found[node.target.id] = beside or found.get(node.target.id, "")
    return found
