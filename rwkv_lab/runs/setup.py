"""What runs must have in common for a law of loss against learning rate to hold for all of them."""

from collections.abc import Mapping
from typing import Any

from rwkv_lab.runs.listing import flat

# Groups and keys; schedule, peak, length and seed may differ.
SHARED = ("model", "data", "tokenizer", "optimizer", "objective", "trainer.batch_size", "trainer.clip")
ASIDE = ("data.cache_dir",)  # cannot change a result


def setup(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys of a plain ``config`` that runs of one fit share."""
    return {
        key: value
        for key, value in flat(config).items()
        if key not in ASIDE and any(key == one or key.startswith(one + ".") for one in SHARED)
    }


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two setups differ, in order; a key that one lacks, as an earlier version's may, does not
    count."""
    return [key for key in sorted({*left} & {*right}) if left[key] != right[key]]


def recipe(overrides: list[str]) -> list[str]:
    """Return the overrides that another run of the same setup repeats: without schedule, length, seed and study."""
    aside = ("schedule", "seed", "study", "trainer.steps", "trainer.tokens", "rerun", "dry_run", "branch")
    return [one for one in overrides if not any(one.startswith((f"{a}=", f"{a}.")) for a in aside)]
