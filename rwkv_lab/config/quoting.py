"""Values on a command line that Hydra's grammar does not take as they are: paths with spaces, umlauts or ``~``."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rwkv_lab.config import registry


def quoted(key: str, value: str) -> str:
    """Return ``key=value`` as a shell takes it, with the value in quotes that Hydra takes off."""
    return shlex.quote(_hydra_quoted(key, value))


def _hydra_quoted(key: str, value: str) -> str:
    # Hydra reads a backslash as itself, except before a quote.
    escaped = value.replace('\\"', '\\\\"').replace('"', '\\"')
    return f'{key}="{escaped}"'


def with_home(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with ``~`` at the beginning of a value expanded, as in ``data.path=~/x``."""
    expanded = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and value.startswith("~"):
            try:
                override = _hydra_quoted(key, str(Path(value).expanduser()))
            except RuntimeError:
                override = _hydra_quoted(key, value)  # the key's owner names what is missing
        expanded.append(override)
    return expanded


def unreadable(key: str, value: str) -> str:
    """Return a sentence on ``key=value`` that is outside Hydra's grammar, with the quoting that works."""
    plain = value.strip()
    if len(plain) > 1 and plain[0] == plain[-1] and plain[0] in "'\"":
        plain = plain[1:-1]
    if key == "data" and (proposed := file_for_corpus(plain)):
        return proposed
    sentence = f"{key}={value} cannot be read as key=value"
    if plain.isalnum() and plain.isascii():
        return f"{sentence}: write key.field=value"
    if plain[:1] in ("[", "{"):
        return f"{sentence}: write a list as [a,b], a mapping as {{key:value}}, and one value as {quoted(key, plain)}"
    return f"{sentence}: quote the value, as in {quoted(key, plain)}"


def file_for_corpus(path: str) -> str | None:
    """Return a sentence for ``data=FILE``, with the corpus and key to name it by; None for what is not like a file."""
    suffix = Path(path).suffix
    if "/" not in path and not suffix:
        return None
    corpora = registry.members("data")
    fitting = [name for name, member in corpora.items() if suffix in member.suffixes] or ["text"]
    name = fitting[0]
    tokenizer = " tokenizer=ids" if corpora[name].holds == "token ids" else ""
    key = f"data.path={path}"
    if not set(path) <= _PLAIN:
        key = quoted("data.path", path)
    return f"data={path} is not a corpus: for a file of your own write data={name}{tokenizer} {key}"


_PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/.-_")
