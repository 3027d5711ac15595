"""What OmegaConf complains of, in plain words. Imports no torch."""

import re

from omegaconf.errors import OmegaConfBaseException

# A complaint, and what to say after the key's name.
_TAILS = (
    (r"Value '(.*)' of type '.*' could not be converted to Integer", r"=\1 is not a whole number"),
    (r"Value '(.*)' of type '.*' could not be converted to Float", r"=\1 is not a number"),
    (r"Value '(.*)' is not a valid bool", r"=\1 is neither true nor false"),
    (r"Cannot convert '.*' to string: '(.*)'", r"=\1 is not one word or path"),
    (r"is not Optional|Incompatible value 'None'", r"=null is not allowed: give a value"),
    (r"is not a ListConfig, list or tuple", r" needs a list, such as [1,2]"),
    (
        r"Invalid type assigned: (?:str|int|float|bool|list)\b|Cannot assign (?:str|int|float|bool|list) to",
        r" has fields: set one of them, as in key.field=value",
    ),
    (r"does not support deletion", r" cannot be taken out: set it to another value"),
    (r"Interpolation key '(.*)' not found", r" takes its value from '\1', which does not exist"),
    (r"Unsupported interpolation type (\w+)", r" takes its value from '${\1:...}', which does not exist"),
    (r"Environment variable '(.*)' not found", r" takes its value from the environment variable \1, which is not set"),
    (r"Invalid value '(.*)', expected one of \[(.*)\]", r"=\1 is unknown: choose one of \2"),
)


def sentence(error: OmegaConfBaseException, key: str | None = None) -> str:
    """``error`` as one sentence that starts with ``key``, or with the key the error itself names."""
    text = one_line(str(error.msg or error))
    name = key or error.full_key or "the configuration"
    for pattern, tail in _TAILS:
        found = re.search(pattern, text)
        if found:
            return name + found.expand(tail)
    return f"{name}: {text}"


def one_line(text: str) -> str:
    """The first line that says something, without a full stop."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "").rstrip(".")
