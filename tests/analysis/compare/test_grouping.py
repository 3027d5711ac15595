"""Groups differ in more than the seed, and are named by what sets them apart."""

from itertools import product

import pytest

from analysis.compare.grouping import by_corpus, common, group, labels
from analysis.compare.records import collect


@pytest.fixture
def groups(tmp_path, fingerprint):
    """The groups of all runs made so far, as ``{label: [seeds]}``."""

    def read():
        records = collect([tmp_path / "runs"], fingerprint)
        (members,) = by_corpus(records).values()
        return {found.label: [record.seed for record in found.records] for found in group(members)}

    return read


def test_seeds_are_one_group(make_run, groups):
    for seed in (1, 2, 3):
        make_run("rwkv_v4", seed)
        make_run("mha_pro", seed)
    assert groups() == {"mha_pro": [1, 2, 3], "rwkv_v4": [1, 2, 3]}


def test_what_cannot_change_a_result_separates_nothing(make_run, groups):
    make_run(seed=1, study="a", trainer__log_every=5, tracker__mode="online")
    make_run(seed=2, study="b", trainer__checkpoint_every=7, data__path="/elsewhere", data__cache_dir="x")
    assert groups() == {"rwkv_v4": [1, 2]}


def test_a_field_that_is_off_is_a_field_that_is_absent(make_run, groups):
    make_run(seed=1, fields={"head_qk_dim": None, "l2_wrap": False})
    make_run(seed=2)
    assert groups() == {"rwkv_v4": [1, 2]}


def test_names_say_what_differs_and_no_more(make_run, groups):
    make_run(seed=1, fields={"n_head": 4})
    make_run(seed=1, suffix="1", fields={"n_head": 4, "small_init_emb": True})
    make_run(seed=1, suffix="2", fields={"n_head": 4, "small_init_emb": True}, schedule__lr_init=2e-3)
    assert list(groups()) == ["lr 1e-3", "small_init_emb lr 1e-3", "small_init_emb lr 2e-3"]


def test_the_plain_model_beside_its_tricks_is_named_by_the_model(make_run, groups):
    make_run("mha_rotary", 1)
    make_run("mha_rotary", 1, suffix="1", fields={"token_shift": "half"})
    make_run("mha_rotary", 1, suffix="2", fields={"token_shift": "half", "head_qk_dim": 256})
    assert list(groups()) == [
        "mha_rotary",
        "mha_rotary token_shift half",
        "mha_rotary token_shift half head_qk_dim 256",
    ]


def test_what_is_off_is_not_named(make_run, groups):
    for i, (width, shift, small) in enumerate(product((0, 256), ("none", "half"), (False, True))):
        tricks = {"head_qk_dim": width, "token_shift": shift, "small_init_emb": small}
        make_run("mha_rotary", 1, suffix=str(i), fields=tricks)
    assert list(groups()) == [
        "mha_rotary",
        "mha_rotary small_init_emb",
        "mha_rotary token_shift half",
        "mha_rotary token_shift half small_init_emb",
        "mha_rotary head_qk_dim 256",
        "mha_rotary head_qk_dim 256 small_init_emb",
        "mha_rotary head_qk_dim 256 token_shift half",
        "mha_rotary head_qk_dim 256 token_shift half small_init_emb",
    ]


def test_what_is_off_is_named_where_the_model_has_it_by_itself(make_run, groups):
    for shift in ("none", "half", "learned"):
        make_run("rwkv_v4", 1, suffix=shift, fields={"token_shift": shift})
    assert list(groups()) == ["rwkv_v4 token_shift half", "rwkv_v4", "rwkv_v4 token_shift none"]
    for shift in ("none", "half"):
        make_run("mha_rotary", 1, suffix=shift, fields={"token_shift": shift})
    assert "mha_rotary" in groups() and "rwkv_v4 token_shift none" in groups()


def test_what_all_groups_of_a_model_share_is_not_named(make_run, groups):
    make_run("rwkv_v4", 1, fields={"token_shift": "learned"})
    make_run("rwkv_v2", 1, fields={"token_shift": "learned", "norm": "post"})
    make_run("mha_rotary", 1, fields={"token_shift": "none"})
    make_run("mha_rotary", 1, suffix="1", fields={"token_shift": "half"})
    make_run("mha_rotary", 1, suffix="2", fields={"token_shift": "half", "head_qk_dim": 256})
    assert sorted(groups()) == [
        "mha_rotary",
        "mha_rotary token_shift half",
        "mha_rotary token_shift half head_qk_dim 256",
        "rwkv_v2",
        "rwkv_v4",
    ]


def test_unset_and_false_are_apart_where_both_can_be_chosen(make_run, groups):
    """model.small_init_emb: unset keeps the model's own recipe, false is unit scale."""
    make_run("mha_rotary", 1, fields={"small_init_emb": None})
    make_run("mha_rotary", 1, suffix="1", fields={"small_init_emb": False})
    make_run("mha_rotary", 1, suffix="2", fields={"small_init_emb": True})
    assert list(groups()) == ["mha_rotary", "mha_rotary no small_init_emb", "mha_rotary small_init_emb"]


def test_fields_that_follow_from_the_model_are_not_in_its_name(make_run, groups):
    make_run("rwkv_v4", 1)
    make_run("mha_pro", 1, fields={"n_head": 4, "head_qk_dim": 256})
    assert list(groups()) == ["mha_pro", "rwkv_v4"]


def test_equal_leaves_keep_their_group_of_keys():
    found = labels([{"model.name": "m", "a.rate": 1, "b.rate": 1}, {"model.name": "m", "a.rate": 2, "b.rate": 1},
                    {"model.name": "m", "a.rate": 1, "b.rate": 2}])  # fmt: skip
    assert found == ["a.rate 1 b.rate 1", "a.rate 2 b.rate 1", "a.rate 1 b.rate 2"]


def test_a_repeated_seed_counts_once(make_run, tmp_path, fingerprint):
    make_run(seed=1, final=1.9, study="a", facts={"ended": "2026-01-01T00:00:00+00:00"})
    make_run(seed=1, final=1.8, study="b", facts={"ended": "2026-01-02T00:00:00+00:00"})
    make_run(seed=1, final=1.7, study="c", facts={"ended": "2026-01-03T00:00:00+00:00", "code": "other"})
    make_run(seed=2, study="a", status="failed")
    (found,) = group(collect([tmp_path / "runs"], fingerprint))
    assert [record.study for record in found.counted] == ["b"]
    assert len(found.records) == 4 and len(found.unfinished) == 1


def test_corpora_are_apart_even_under_one_name(make_run, tmp_path, fingerprint):
    make_run(seed=1, data="builtin", facts={"data": {"sha256": {"topics": "1" * 64}}})
    make_run(seed=2, data="builtin", facts={"data": {"sha256": {"topics": "2" * 64}}})
    make_run(seed=3, data="builtin", status="failed", facts={"data": None})
    make_run(seed=1, data="enwik8")
    found = by_corpus(collect([tmp_path / "runs"], fingerprint))
    assert {name: [record.seed for record in members] for name, members in found.items()} == {
        "builtin": [1, 3],
        "builtin #2": [2],
        "enwik8": [1],
    }


def test_what_is_shared_is_listed(make_run, tmp_path, fingerprint):
    make_run("rwkv_v4", 1)
    make_run("mha_pro", 1, fields={"n_embd": 64})
    shared = common(collect([tmp_path / "runs"], fingerprint))
    assert shared["model.n_layer"] == 4
    assert "model.name" not in shared and "model.n_embd" not in shared and "seed" not in shared
