"""The identity of a run: a hash of everything in its checked configuration that can change its result."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from rwkv_lab.config import check, derived, registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import default_of
from rwkv_lab.config.kinds import Component
from rwkv_lab.config.schema import COMPONENT_GROUPS, BranchConfig, Config
from rwkv_lab.runs import listing
from rwkv_lab.runs.store import select
from rwkv_lab.util.paths import runs_dir


def canonical(config: Any, files: Mapping[str, str], prefix: str = "") -> Any:
    """Return what is hashed: plain data of a dataclass tree, without None, False and fields marked ``identity=False``.

    False stays where the default is None, because unset means something else there.
    ``files`` maps a dotted key that names a file to the sha256 of its content, which stands in for the name.
    """
    if dataclasses.is_dataclass(config):
        kept = {}
        for field in dataclasses.fields(config):
            key = f"{prefix}{field.name}"
            value = getattr(config, field.name)
            off = value is None or (value is False and field.default is not None)
            off |= not field.metadata.get("hash_default", True) and value == default_of(field)
            off |= field.name in getattr(config, "outside_identity", ())
            if off or not field.metadata.get("identity", True):
                continue
            content = {"sha256": files[key]} if key in files else canonical(value, files, key + ".")
            if content or field.metadata.get("hash_default", True):
                kept[field.name] = content
        return kept
    if isinstance(config, (list, tuple)):
        return [canonical(value, files, prefix) for value in config]
    return config


def named_files(config: Config) -> dict[str, str]:
    """Return the sha256 of every file a key names, by dotted key: what the hash counts in place of the names.

    A branch has its parent's identity as well.
    """
    components: list[tuple[str, Component]] = [(group, getattr(config, group)) for group in COMPONENT_GROUPS]
    named = {key: sha256 for group, component in components for key, sha256 in component.file_hashes(group).items()}
    if config.branch.step is not None:
        named["branch.parent"] = parent_id(config)
    return named


def parent_id(config: Config) -> str:
    """Return the id of the run that the branch ``config`` starts from."""
    if config.branch.parent is not None:
        return select(config.branch.parent, runs_dir(config.runs_dir)).id
    parent = parent_of(config)
    return identity(parent, named_files(parent))


def parent_of(config: Config) -> Config:
    """Return the configuration of the run that the branch ``config`` starts from.

    Without ``branch.parent`` it is ``config`` itself with a constant rate, up to ``branch.step``. Raises UserError if
    the parent is shorter, or differs in what a branch cannot change.
    """
    step = config.branch.step
    assert step is not None
    if config.branch.parent is None:
        kept = {
            key: getattr(config.schedule, key) for key in ("lr_init", "warmup_steps") if hasattr(config.schedule, key)
        }
        if "lr_init" not in kept:
            raise UserError(f"schedule={config.schedule.name} has no rate to begin with: set branch.parent=RUN")
        return dataclasses.replace(
            copy.deepcopy(config),
            branch=BranchConfig(),
            schedule=registry.get("schedule", "constant")(name="constant", **kept),
            trainer=dataclasses.replace(config.trainer, steps=step, tokens=None, sample_length=0),
            rerun=False,
            stop=None,
        )
    run = select(config.branch.parent, runs_dir(config.runs_dir))
    parent = check.check(OmegaConf.create({**run.config, "runs_dir": config.runs_dir}))
    if derived.total_steps(parent) < step:
        raise UserError(
            f"branch.step={step} is after the end of {run.study}/{run.name}: at most {derived.total_steps(parent)}"
        )
    own, theirs = trajectory(config), trajectory(parent)
    for key in sorted(own.keys() | theirs.keys()):
        # The rule of an update may change with the schedule; its state must stay.
        if own.get(key) != theirs.get(key) and (not key.startswith("optimizer.") or key == "optimizer.name"):
            raise UserError(
                f"a branch cannot change {key}: {run.study}/{run.name} has {theirs.get(key)} (got {own.get(key)})"
            )
    return parent


def trajectory(config: Config) -> dict[str, Any]:
    """Return, by dotted key, all of the identity that two runs share if only schedule and length differ."""
    flat = listing.flat(canonical(config, {}))
    may_differ = ("schedule.", "branch", "trainer.steps", "trainer.tokens", "trainer.final_tokens")
    return {key: value for key, value in flat.items() if not key.startswith(may_differ)}


def identity(config: Config, files: Mapping[str, str]) -> str:
    """Eight hex digits that name a run. ``files`` also carries sources no key names, such as the built-in corpus."""
    content = {"config": canonical(config, files), "sources": dict(sorted(files.items()))}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(config: Config, files: Mapping[str, str]) -> str:
    """``<model>-<data>-s<seed>-<hash8>``."""
    return f"{config.model.name}-{config.data.name}-s{config.seed}-{identity(config, files)}"
