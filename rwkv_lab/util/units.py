"""Counts and durations, parsed and printed."""

import math

_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12, "p": 10**15}


def parse_count(value: object) -> int:
    """Return ``2M``, ``2e6``, ``2_000_000`` or 2000000 as an int.

    Raises ValueError, whose text completes "... must be", for anything but a positive whole number.
    """
    text = str(value).strip().lower().replace("_", "")
    unit = _UNITS.get(text[-1:], 1)
    digits = text[:-1] if unit > 1 else text
    try:
        number = float(digits) * unit if digits.isascii() else math.nan
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < 1 or number != round(number):
        raise ValueError(f"a positive integer, e.g. 500000, 5e5, 500k or 2M (got {value})")
    return int(number)


def count(number: float) -> str:
    """Return 16384 as 16.4K: three digits and a unit."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Return 75 as 1:15, 4000 as 1:06:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def ago(seconds: float) -> str:
    """Return an age in one unit: 5 s, 12 min, 3 h, 8 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
