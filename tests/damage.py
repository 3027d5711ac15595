"""Damage to single files: a bit flipped, a part zeroed, the end cut off, everything gone."""

import random
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[bytearray, random.Random], bytearray]


def flip(content: bytearray, draw: random.Random) -> bytearray:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return content


def zero(content: bytearray, draw: random.Random) -> bytearray:
    start = draw.randrange(len(content))
    stop = min(len(content), start + draw.choice((1, 16, 4096)))
    content[start:stop] = bytes(stop - start)
    return content


def truncate(content: bytearray, draw: random.Random) -> bytearray:
    return content[: draw.randrange(len(content))]


def empty(content: bytearray, draw: random.Random) -> bytearray:
    return bytearray()


DAMAGES: dict[str, Damage] = {"flipped": flip, "zeroed": zero, "truncated": truncate, "emptied": empty}


def damage(file: Path, how: str, draw: random.Random) -> bool:
    """Damage ``file``; False if it is empty or the damage left it as it was."""
    before = file.read_bytes()
    after = bytes(DAMAGES[how](bytearray(before), draw)) if before else b""
    file.write_bytes(after)
    return after != before
