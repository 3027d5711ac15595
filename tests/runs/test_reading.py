"""Runs as others read them: names by what differs, tables, rows, configurations."""

import json
from pathlib import Path

import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, last_row, listing, load, read_metrics, store, table
from tests.runs.making import RESULT, make_run


def configured(root: Path, name: str, **groups: dict) -> Run:
    folder = make_run(root, "named", name, "complete", result=RESULT)
    content = {"model": {"name": "rwkv_v4"}, "data": {"name": "builtin", "path": None}, "seed": 1}
    (folder / "config.yaml").write_text(json.dumps(content | groups))
    return Run(folder)


@pytest.mark.parametrize(
    ("configs", "names"),
    [
        (
            [
                {"model": {"name": model}, "schedule": {"lr_init": rate}, "seed": seed}
                for model, rate, seed in [("rwkv_v4", 4e-3, 2), ("rwkv_v4", 4e-3, 1), ("mha_pro", 1e-4, 1)]
            ],
            ["rwkv_v4 seed 2", "rwkv_v4 seed 1", "mha_pro seed 1"],
        ),
        ([{"schedule": {"lr_init": rate}} for rate in (4e-3, 0.02, 1.5e-5)], ["lr 4e-3", "lr 0.02", "lr 1.5e-5"]),
        (
            [{"schedule": {"name": "wsd", "decay_fraction": part}} for part in (0.2, 0.05)],
            ["wsd 20 %", "wsd 5 %"],
        ),
        (
            [{"schedule": {"name": "wsd", "decay_fraction": 0.2}}, {"schedule": {"name": "constant"}}],
            ["wsd", "constant"],
        ),
        (
            [{"data": {"name": "text", "path": path}} for path in ("/a/b/war.txt", "peace.txt")],
            ["war.txt", "peace.txt"],
        ),
        ([{"model": {"name": "x", "head_qk": on}} for on in (True, False)], ["head_qk", "no head_qk"]),
        ([{"trainer": {"tokens": 2_000_000}}, {"trainer": {"tokens": 4_000_000}}], ["2M tokens", "4M tokens"]),
        ([{"seed": 3}], ["rwkv_v4 builtin seed 3"]),
        ([{"trainer": {"log_every": 1}}, {"tracker": {"name": "wandb"}}], ["rwkv_v4 builtin seed 1 aaaaaaa0"] * 2),
    ],
)
def test_runs_are_named_by_what_differs(tmp_path: Path, configs: list[dict], names: list[str]) -> None:
    runs = [configured(tmp_path, f"m-d-s1-aaaaaaa{i}", **groups) for i, groups in enumerate(configs)]
    found = listing.names(runs)
    assert len(set(found)) == len(found)
    assert [name.replace("aaaaaaa1", "aaaaaaa0") for name in found] == names


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["model=rwkv_v4", "schedule.lr_init=4e-3", "seed=2", "tracker=none"], "rwkv_v4 lr 4e-3 seed 2"),
        (["experiments=decays", "+branch.step=200"], "rwkv_v4 branch at 200"),
        (["stop=median", "rerun=true"], "rwkv_v4 kjv seed 2"),
    ],
)
def test_a_run_is_named_by_what_was_typed_for_it(overrides: list[str], name: str) -> None:
    config = {"model": {"name": "rwkv_v4"}, "data": {"name": "kjv"}, "schedule": {"lr_init": 4e-3}, "seed": 2}
    config |= {"trainer": {"log_every": 5}, "branch": {"step": 200}, "stop": {"name": "median"}, "rerun": True}
    assert listing.typed_name(config, overrides) == name


def test_a_table_of_arrays(root: Path) -> None:
    columns = table(store.studies(["one"], root))
    assert {"name", "run", "study", "status", "model.name", "model.n_layer", "val_loss"} <= columns.keys()
    assert columns["model.n_layer"].tolist() == [3, 3, 4]
    assert columns["val_loss"][1] == 1.5 and columns["val_loss"][0] != columns["val_loss"][0]


@pytest.mark.parametrize("text", ["", "step\n", "step,loss\n1,2\n", "step,loss\n1,2\n3,4", "step,loss\n1,2\n3,4\n5\n"])
def test_the_last_row_is_that_of_the_whole_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    columns = read_metrics(tmp_path / "metrics.csv")
    last = {name: values[-1] for name, values in columns.items() if len(values)}
    assert last_row(tmp_path / "metrics.csv") == last


@pytest.mark.parametrize("content", ["a: &a [1]\nb: [*a, *a]", "[1, 2]", "a: [", "[" * 5000])
def test_a_configuration_that_cannot_be_read(root: Path, content: str) -> None:
    folder = root / "one" / "rwkv_v4-builtin-s1-aaaaaaaa"
    (folder / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        load(folder).config  # noqa: B018
    assert listing.names([load(folder)]) == [folder.name]


def test_numbers_written_by_hand(root: Path) -> None:
    folder = root / "one" / "rwkv_v4-builtin-s1-aaaaaaaa"
    (folder / "config.yaml").write_text("a: 1e-3\nb: -2E4\nc: 1.0e-05\nd: '1e-3'\ne: e5\n")
    assert load(folder).config == {"a": 1e-3, "b": -2e4, "c": 1e-5, "d": "1e-3", "e": "e5"}
