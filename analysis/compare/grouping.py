"""Groups of runs that differ only in their seed, named by what sets them apart."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.compare.records import Record
from rwkv_lab.config.check import schema_of
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import GROUPS, Config
from rwkv_lab.runs import listing

FILE_KEYS = {"data.path", "data.train_path", "data.val_path", "data.test_path"}
OFF = (0, "none")  # as is False, which equals 0
FIRST = ("model.name", "data.name", "tokenizer.name", "model", "schedule", "optimizer", "trainer")


@dataclass(frozen=True)
class Group:
    """Runs of one configuration; ``own``: the keys that differ between groups, with this group's values."""

    label: str
    own: dict[str, Any]
    records: tuple[Record, ...]

    @property
    def counted(self) -> tuple[Record, ...]:
        """Finished runs, one a seed: a repeated seed is the same run again, not another sample."""
        by_seed: dict[Any, Record] = {}
        for record in sorted(self.records, key=lambda r: (r.status == "complete", str(r.fact("ended") or ""))):
            if record.finished:
                by_seed[record.seed] = record
        return tuple(sorted(by_seed.values(), key=lambda r: str(r.seed)))

    @property
    def unfinished(self) -> tuple[Record, ...]:
        """Runs that did not finish."""
        return tuple(record for record in self.records if not record.finished)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted key, value)`` pairs of a nested mapping; lists as JSON text, None left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        yield prefix, json.dumps(value)
    elif value is not None:
        yield prefix, value


def fields_of(config: Mapping[str, Any]) -> dict[str, dataclasses.Field]:
    """Return the schema's fields for ``config`` by dotted key; a section with an unknown name has none."""
    found = {f.name: f for f in dataclasses.fields(Config)}
    for group in GROUPS:
        section: Any = config.get(group)
        if not isinstance(section, Mapping):
            continue
        try:
            schema = schema_of(group, str(section.get("name")))
        except UserError:
            continue
        found |= {f"{group}.{f.name}": f for f in dataclasses.fields(schema)}
    return found


def compared(record: Record) -> dict[str, Any]:
    """Return the part of a run's configuration that is compared within one corpus.

    Left out are the seed, the corpus's files, fields that cannot change a result, and False, which means the same as an
    absent field, except for fields that are unset by default, such as model.small_init_emb. A field added later counts
    as absent at its default.
    """
    fields = fields_of(record.config)
    left_out = {"seed"} | FILE_KEYS | {key for key, f in fields.items() if not f.metadata.get("identity", True)}
    later = {key: f.default for key, f in fields.items() if not f.metadata.get("hash_default", True)}
    chosen = {key for key, f in fields.items() if f.default is None}
    return {
        key: value
        for key, value in flatten(record.config)
        if key not in left_out and (value is not False or key in chosen) and (key not in later or value != later[key])
    }


def _importance(key: str) -> int:
    for rank, known in enumerate(FIRST):
        if key == known or key.startswith(known + "."):
            return rank
    return len(FIRST)


def _varies(configs: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({str(config.get(key)) for config in configs}) > 1


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which ``configs`` differ, the most important first."""
    names = {key: None for config in configs for key in config}
    return sorted((key for key in names if _varies(configs, key)), key=_importance)


def _as_by_default(key: str, config: Mapping[str, Any]) -> bool:
    """Return whether a model setting is as in the schema: absent, at its default, or off where that is the default."""
    if key not in config:
        return True
    fields = fields_of({"model": {"name": config.get("model.name")}})
    if not key.startswith("model.") or key not in fields:
        return False
    default = fields[key].default
    return config[key] == default or (default is None and config[key] in OFF)


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a short and unique name for each of ``configs``, which are all different.

    A name has the model, if there are several, and the keys in which groups of that model differ; parts of the model
    that are as by default are left out, unless two such values differ. If that leaves a name empty, every name starts
    with its model.
    """
    telling = listing.telling_keys(configs)
    keys = [key for key in differing(configs) if key in telling]
    models = len({config.get("model.name") for config in configs}) > 1
    parts: list[list[str]] = []
    for config in configs:
        alike = [other for other in configs if other.get("model.name") == config.get("model.name")]
        shown = []
        for key in keys:
            plain = {str(other.get(key)) for other in alike if _as_by_default(key, other)}
            hidden = key not in config or (len(plain) == 1 and _as_by_default(key, config))
            if _varies(alike, key) and not hidden:
                shown.append(listing.part(key, config, keys))
        parts.append(shown)
    if models or not all(parts):
        parts = [[str(config.get("model.name", "run")), *shown] for config, shown in zip(configs, parts, strict=True)]
    names: list[str] = []
    for shown in parts:
        name = " ".join(shown)
        taken = sum(other == name or other.startswith(f"{name} #") for other in names)
        names.append(f"{name} #{taken + 1}" if taken else name)
    return names


def group(records: Sequence[Record]) -> list[Group]:
    """Return the groups of ``records``, readable runs on one corpus, in order of appearance."""
    members: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    configs: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for record in records:
        config = compared(record)
        key = tuple(sorted((name, str(value)) for name, value in config.items()))
        members.setdefault(key, []).append(record)
        configs[key] = config
    keys = differing(list(configs.values()))
    return [
        Group(label, {name: config[name] for name in keys if name in config}, tuple(members[key]))
        for label, (key, config) in zip(labels(list(configs.values())), configs.items(), strict=True)
    ]


def is_number(groups: Sequence[Group], key: str) -> bool:
    """Return whether every group that has ``key`` has a number there."""
    values = [found.own[key] for found in groups if key in found.own]
    return bool(values) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def common(records: Sequence[Record]) -> dict[str, Any]:
    """Return the configuration that all readable ``records`` share."""
    configs = [compared(record) for record in records if record.status != "unreadable"]
    first = configs[0] if configs else {}
    return {key: value for key, value in first.items() if all(str(c.get(key)) == str(value) for c in configs)}


def by_corpus(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return readable runs by what they were trained and measured on; bits per byte of different texts do not compare.

    A run that ended before it had read its data joins the runs whose data has the same name.
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
