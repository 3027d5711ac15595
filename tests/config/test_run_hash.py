"""A run's identity: the same experiment has the same name, any change of its result another."""

import copy
import dataclasses
import json

import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.run_hash import canonical, identity, named_files, run_name
from rwkv_lab.config.schema import Config
from tests.composing import checked, hydra_context

FILES: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def context():
    with hydra_context():
        yield


def name_of(*overrides: str) -> str:
    return identity(checked(*overrides), FILES)


def test_the_name_says_model_data_and_seed():
    assert run_name(checked("seed=7"), FILES) == f"rwkv_v4-kjv-s7-{name_of('seed=7')}"


@pytest.mark.parametrize(
    "one, other",
    [
        (["trainer.tokens=2M"], ["trainer.tokens=2000000"]),
        (["trainer.tokens=2M"], ["trainer.tokens=2e6"]),
        (["trainer.steps=5"], ["trainer.steps=5", "trainer.tokens=9M"]),
        ([], ["study=elsewhere"]),
        ([], ["tracker=none"]),
        ([], ["tracker.project=other", "trainer.log_every=3", "trainer.eval_every=7", "trainer.checkpoint_every=9"]),
        ([], ["data.cache_dir=/somewhere/else", "trainer.sample_length=5"]),
        ([], ["rerun=true"]),
        (["size=small"], ["size=small", "model.n_layer=4"]),
    ],
)
def test_the_same_experiment_is_the_same_run(one, other):
    if one == ["size=small"]:
        other = ["size=small", f"model.n_layer={checked('size=small').model.n_layer}"]
    assert name_of(*one) == name_of(*other)


def leaves(config, prefix=()):
    """Every field that counts, as (path, value)."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.metadata.get("identity", True):
            continue
        if dataclasses.is_dataclass(value):
            yield from leaves(value, (*prefix, field.name))
        else:
            yield (*prefix, field.name), value


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [*value, 0.5]
    return "something" if value is None else f"{value}x"


def with_value(config: Config, path, value) -> Config:
    config = copy.deepcopy(config)
    owner = config
    for name in path[:-1]:
        owner = getattr(owner, name)
    setattr(owner, path[-1], value)
    return config


@pytest.mark.parametrize("overrides", [[], ["model=rwkv_v1", "schedule=wsd"], ["model=mha_pro", "schedule=piecewise"]])
def test_every_field_that_counts_changes_the_identity(overrides):
    config = checked(*overrides)
    seen = {identity(config, FILES): "unchanged"}
    for path, value in leaves(config):
        other = identity(with_value(config, path, changed(value)), FILES)
        assert other not in seen, f"{'.'.join(path)} against {seen[other]}"
        seen[other] = ".".join(path)
    assert len(seen) > 30


def test_another_content_is_another_run_whatever_the_file_is_called(tmp_path):
    first, same, other = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt"))
    first.write_text("some text\n" * 100)
    same.write_text("some text\n" * 100)
    other.write_text("other text\n" * 100)

    def name(path):
        config = checked("data=text", f"data.path={path}")
        return identity(config, named_files(config))

    assert name(first) == name(same) != name(other)


def test_a_missing_file_is_a_mistake_that_names_the_key():
    config = checked("data=text", "data.path=nowhere.txt")
    with pytest.raises(UserError, match=r"data\.path.*nowhere\.txt"):
        named_files(config)


def test_a_new_field_whose_default_means_as_before_keeps_old_identities():
    @dataclasses.dataclass
    class Before:
        width: int = 3

    @dataclasses.dataclass
    class After:
        width: int = 3
        trick: bool = False
        limit: int | None = None

    assert json.dumps(canonical(Before(), {})) == json.dumps(canonical(After(), {}))


def test_unset_and_false_are_two_experiments_where_both_can_be_chosen():
    unset, off = checked("model=mha_rotary"), checked("model=mha_rotary", "model.small_init_emb=false")
    assert unset.model.small_init_emb is None
    assert identity(unset, FILES) != identity(off, FILES)
