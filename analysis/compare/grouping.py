"""Runs that differ only in their seed are one group; a group is named by what sets it apart."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.compare.records import Record
from rwkv_lab.config import GROUPS, Config, schema_of

FILE_KEYS = {"data.path", "data.train_path", "data.val_path", "data.test_path"}
BARE = ("model.name", "data.name", "tokenizer.name", "optimizer.name", "schedule.name")
OFF = (0, "none")  # and False, which equals 0
FIRST = ("model.name", "data.name", "tokenizer.name", "model", "schedule", "optimizer", "trainer")


@dataclass(frozen=True)
class Group:
    """Runs of one configuration. ``own`` holds the keys that differ between groups, with this group's values."""

    label: str
    own: dict[str, Any]
    records: tuple[Record, ...]

    @property
    def counted(self) -> tuple[Record, ...]:
        """Finished runs, one a seed: a repetition of a seed is the same run again, not another sample."""
        by_seed: dict[Any, Record] = {}
        for record in sorted(self.records, key=lambda r: (r.status == "complete", str(r.fact("ended") or ""))):
            if record.finished:
                by_seed[record.seed] = record
        return tuple(sorted(by_seed.values(), key=lambda r: str(r.seed)))

    @property
    def unfinished(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if not record.finished)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted key, value)`` pairs of a nested mapping; lists as JSON text; None left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        yield prefix, json.dumps(value)
    elif value is not None:
        yield prefix, value


def fields_of(config: Mapping[str, Any]) -> dict[str, dataclasses.Field]:
    """The schema's fields for ``config`` by dotted key; none for a section whose name is no longer known."""
    found = {f.name: f for f in dataclasses.fields(Config)}
    for group in GROUPS:
        section: Any = config.get(group)
        try:
            schema = schema_of(group, section["name"] if group in ("model", "schedule") else "")
        except (KeyError, TypeError):
            continue
        found |= {f"{group}.{f.name}": f for f in dataclasses.fields(schema)}
    return found


def compared(record: Record) -> dict[str, Any]:
    """The configuration of a run as far as it is compared within one corpus, whose files therefore do not count.

    Left out are the seed, what by the schema cannot change a result, and False, which means the same as no field at
    all, but for fields that are unset by default: there it is a choice of its own, as in model.small_init_emb.
    """
    fields = fields_of(record.config)
    left_out = {"seed"} | FILE_KEYS | {key for key, f in fields.items() if not f.metadata.get("identity", True)}
    chosen = {key for key, f in fields.items() if f.default is None}
    return {
        key: value
        for key, value in flatten(record.config)
        if key not in left_out and (value is not False or key in chosen)
    }


def _importance(key: str) -> int:
    for rank, known in enumerate(FIRST):
        if key == known or key.startswith(known + "."):
            return rank
    return len(FIRST)


def _partition(configs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({tuple(str(config.get(key)) for key in keys) for config in configs})


def telling_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fewest keys, the most important first, that tell all ``configs`` apart."""
    names = {key: None for config in configs for key in config}
    chosen: list[str] = []
    for key in sorted(names, key=_importance):
        if _partition(configs, [*chosen, key]) > _partition(configs, chosen):
            chosen.append(key)
    whole = _partition(configs, chosen)
    for key in reversed(list(chosen)):
        rest = [other for other in chosen if other != key]
        if _partition(configs, rest) == whole:
            chosen = rest
    return chosen


def _part(key: str, value: Any, keys: Sequence[str]) -> str:
    if key in BARE:
        return str(value)
    leaf = key.rsplit(".", 1)[-1]
    short = leaf if sum(other.rsplit(".", 1)[-1] == leaf for other in keys) == 1 else key
    shown = f"{value:.4g}" if isinstance(value, float) else str(value).lower() if value is False else value
    return short if value is True else f"{short}={shown}"


def _is_off(key: str, config: Mapping[str, Any]) -> bool:
    """Whether ``key`` is a part of the model that this one does without unless it is asked for."""
    value = config[key]
    default = getattr(fields_of({"model": {"name": config.get("model.name")}}).get(key), "default", dataclasses.MISSING)
    return key.startswith("model.") and value in OFF and (default is None or default == value)


def _shown(configs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[list[str]]:
    """For each of ``configs`` the keys that name it.

    What all groups of a model share goes without saying once the model is named; so does what is off, where the names
    stay apart.
    """
    shown = [[key for key in keys if key in config] for config in configs]
    if "model.name" in keys:
        models = [[other for other in configs if other.get("model.name") == c.get("model.name")] for c in configs]
        shown = [
            [key for key in names if key == "model.name" or _partition(alike, [key]) > 1]
            for names, alike in zip(shown, models, strict=True)
        ]
    whole = _partition(configs, keys)
    for key in keys:
        fewer = [
            [other for other in names if other != key or not _is_off(key, config)]
            for config, names in zip(configs, shown, strict=True)
        ]
        left = [{name: config[name] for name in names} for config, names in zip(configs, fewer, strict=True)]
        shown = fewer if _partition(left, keys) == whole else shown
    return shown


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short and unique name for each of ``configs``, which are all different.

    Where one of them would have none, being the plain model beside those with a trick, each starts with its model.
    """
    keys = telling_keys(configs)
    shown = _shown(configs, keys)
    if not all(shown) and all("model.name" in config for config in configs):
        shown = [["model.name", *(key for key in names if key != "model.name")] for names in shown]
    names: list[str] = []
    for config, parts in zip(configs, shown, strict=True):
        name = " ".join(_part(key, config[key], keys) for key in parts) or "run"
        taken = sum(other == name or other.startswith(f"{name} #") for other in names)
        names.append(f"{name} #{taken + 1}" if taken else name)
    return names


def group(records: Sequence[Record]) -> list[Group]:
    """The groups of ``records``, readable runs on one corpus, in order of appearance."""
    members: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    configs: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for record in records:
        config = compared(record)
        key = tuple(sorted((name, str(value)) for name, value in config.items()))
        members.setdefault(key, []).append(record)
        configs[key] = config
    names = {name: None for config in configs.values() for name in config}
    differing = [name for name in sorted(names, key=_importance) if _partition(list(configs.values()), [name]) > 1]
    return [
        Group(label, {name: config[name] for name in differing if name in config}, tuple(members[key]))
        for label, (key, config) in zip(labels(list(configs.values())), configs.items(), strict=True)
    ]


def common(records: Sequence[Record]) -> dict[str, Any]:
    """The configuration all readable ``records`` share."""
    configs = [compared(record) for record in records if record.status != "unreadable"]
    first = configs[0] if configs else {}
    return {key: value for key, value in first.items() if all(str(c.get(key)) == str(value) for c in configs)}


def by_corpus(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Readable runs by what they were trained and measured on: bits per byte of different texts do not compare.

    A run that ended before it knew its data joins the runs whose data has the same name.
    """
    found: dict[tuple[str, str, str], list[Record]] = {}
    readable = [record for record in records if record.status != "unreadable"]
    for record in sorted(readable, key=lambda r: not r.fact("data", "sha256")):
        data = record.config.get("data") or {}
        name, split = str(data.get("name", "unknown data")), json.dumps(data.get("split"))
        sums = json.dumps(record.fact("data", "sha256") or {}, sort_keys=True)
        same = [key for key in found if key[:2] == (name, split)]
        found.setdefault(same[0] if sums == "{}" and same else (name, split, sums), []).append(record)
    titles: dict[str, list[Record]] = {}
    for (name, _, _), members in found.items():
        versions = sum(title == name or title.startswith(f"{name} #") for title in titles)
        titles[f"{name} #{versions + 1}" if versions else name] = sorted(members, key=lambda r: (r.study, r.name))
    return titles
