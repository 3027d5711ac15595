"""Scores on tasks in the comparison: the table by groups, and the figure against size and compute."""

import pytest

from analysis.cli import main
from analysis.compare import tables, tasks
from analysis.compare.page import render
from analysis.compare.records import collect
from analysis.compare.summary import compare
from rwkv_lab.config.errors import UserError


def scored(acc, **more):
    return {"evals": {"piqa": {"acc": acc, "acc_stderr": 0.01, "samples": 8, "limit": 8}, **more}}


@pytest.fixture
def comparison(tmp_path, make_run, fingerprint):
    extra = {"lambada": {"perplexity": 9.5, "samples": 4}, "damaged": None}
    make_run("rwkv_v4", 1, facts=scored(0.5) | {"parameters": 10**6})
    make_run("rwkv_v4", 2, facts=scored(0.7, **extra))
    make_run("mha_pro", 1, final=1.9)
    return compare("study", collect([tmp_path / "runs"], fingerprint))


def test_the_table(comparison):
    head, rows = tasks.table(comparison.blocks[0])
    assert head == ["group", "lambada (perplexity)", "piqa (acc)"]
    found = {row[0].split()[-1]: row[1:] for row in rows}
    assert found == {"rwkv_v4": ["9.500", "0.600 ± 0.141"], "mha_pro": ["–", "–"]}
    assert "| 0.600 ± 0.141 |" in tables.markdown(comparison, "command")
    assert "piqa (acc)" in tables.groups_csv(comparison).splitlines()[0]
    assert "0.600 ± 0.141" in render(comparison, "command", "today")


def test_the_figure(comparison):
    figure = tasks.score_figure(comparison.blocks[0])
    (_, _), (by_size, by_compute) = figure.axes[:2], figure.axes[2:]
    points = [point for line in by_size.lines for point in line.get_xydata().tolist()]
    assert sorted(points) == [[1e6, 0.5], [1.6e6, 0.7]]
    assert [x for line in by_compute.lines for x in line.get_xdata()] == [9.7e12, 9.7e12]
    assert by_compute.get_xscale() == "log"


def test_without_scores_there_is_neither(tmp_path, make_run, fingerprint):
    make_run("mha_pro")
    found = compare("study", collect([tmp_path / "runs"], fingerprint))
    assert tasks.table(found.blocks[0])[1] == [] and tasks.score_figure(found.blocks[0]) is None
    assert "lm-eval" not in render(found, "command", "today")


@pytest.mark.parametrize("tracker", ["none", "nonsense"])
def test_a_tracker_that_takes_no_comparison(make_run, tracker):
    with pytest.raises(UserError, match="wandb"):
        main(["compare", str(make_run("mha_pro").parent), "--to", tracker])
