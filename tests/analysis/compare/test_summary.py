"""The numbers of the table, its notes, and its forms as text."""

import csv
import io
import re

import numpy as np
import pytest

from analysis.compare import tables
from analysis.compare.notes import census, notes
from analysis.compare.records import collect
from analysis.compare.summary import Criteria, compare
from rwkv_lab.config.errors import UserError


@pytest.fixture
def comparison(tmp_path, fingerprint):
    """The comparison of all runs made so far."""

    def read(**options):
        return compare("study", collect([tmp_path / "runs"], fingerprint), **options)

    return read


@pytest.fixture
def study(make_run):
    """Two groups of three seeds, one of them twice as fast, and a third with one run of two finished."""
    for seed, change in ((1, -0.001), (2, 0.0), (3, 0.001)):
        make_run("rwkv_v4", seed, 1.80 + change, speed=20_000.0)
        make_run("mha_pro", seed, 1.90 + change, speed=10_000.0, facts={"flops_per_token": 2e7})
    make_run("rwkv_v1", 1, 1.85)
    make_run("rwkv_v1", 2, status="failed", part=0.3, facts={"reason": "out of memory"})


def test_rows_are_ranked_with_mean_and_deviation(study, comparison):
    (block,) = comparison().blocks
    assert [row.label for row in block.rows] == ["rwkv_v4", "rwkv_v1", "mha_pro"]
    best, one, last = block.rows
    assert best.mean("final") == pytest.approx(1.8) and best.std("final") == pytest.approx(0.001)
    assert np.isnan(one.std("final"))
    assert tables.seeds(one) == "1 of 2" and tables.against_reference(best, block) == "reference"
    assert tables.against_reference(last, block) == "+0.1000 beyond noise"
    assert tables.against_reference(one, block) == "+0.0500 not tested"


def test_equal_budgets(study, comparison):
    (block,) = comparison().blocks
    assert block.budgets == pytest.approx({"tokens": 1e6, "seconds": 50, "flops": 9.7e12})
    best, _, last = block.rows
    assert best.mean("tokens") == pytest.approx(1.8, abs=1e-4)
    assert best.mean("seconds") == pytest.approx(1.8, abs=1e-4)
    assert last.mean("tokens") == pytest.approx(1.9, abs=1e-4)
    half = 1.6 * 0.51**-0.18 - 1.6 * 1.01**-0.18
    assert last.mean("seconds") == pytest.approx(1.9 + half, abs=0.01)
    assert last.mean("flops") == pytest.approx(last.mean("seconds"), abs=0.02)


def test_a_budget_can_be_chosen(study, comparison):
    (block,) = comparison(budgets={"tokens": 5e5}).blocks
    assert block.budgets["tokens"] == 5e5
    assert block.rows[0].mean("tokens") > block.rows[0].mean("final") + 0.1
    (block,) = comparison(budgets={"tokens": 2e6}).blocks
    assert np.isnan(block.rows[0].mean("tokens")) and tables.spread(block.rows[0], "tokens") == tables.NONE


def test_baseline(study, comparison):
    found = comparison(criteria=Criteria(baseline="mha_pro"))
    (block,) = found.blocks
    assert block.reference == "mha_pro" and len(block.verdicts) == 2
    assert block.rows[0].verdict.difference == pytest.approx(-0.1)
    assert "vs baseline" in tables.headings(block, found)
    with pytest.raises(UserError, match="did you mean 'mha_pro'"):
        comparison(criteria=Criteria(baseline="mha_pros"))


def test_notes_name_what_stands_against_the_numbers(study, make_run, comparison):
    make_run("rwkv_v4", 4, 1.8, facts={"code": "other", "hardware": {"name": "Another processor"}})
    make_run("rwkv_v4", 4, 1.8, study="again")
    text = "\n".join(notes(comparison()))
    assert "1 of 10 runs did not finish (1 failed)" in text
    assert "1 of 10 runs is stale" in text
    assert "hardware (A processor, Another processor)" in text
    assert "a seed that was trained more than once counts once: rwkv_v4" in text
    assert "not tested: rwkv_v1" in text


def test_a_study_with_nothing_finished(make_run, comparison):
    make_run("rwkv_v4", 1, status="running", part=0.5)
    make_run("rwkv_v4", 2, status="failed", part=0.0, facts={"flops_per_token": None, "parameters": None})
    found = comparison()
    (row,) = found.blocks[0].rows
    assert found.blocks[0].reference is None and tables.seeds(row) == "0 of 2"
    assert tables.quality(row, found.blocks[0])[2:] == [tables.NONE] * 5
    assert census(found.records) == "1 interrupted, 1 failed"


def test_two_corpora_are_two_tables(make_run, comparison):
    for seed in (1, 2):
        make_run("rwkv_v4", seed, 1.8, data="enwik8")
        make_run("rwkv_v4", seed, 1.2, data="builtin")
    found = comparison()
    assert [block.corpus for block in found.blocks] == ["builtin", "enwik8"]
    assert not any(block.verdicts for block in found.blocks)
    assert any("different texts" in note for note in notes(found))


def test_a_model_looks_the_same_on_every_corpus(make_run, comparison):
    for model, here, there in (("rwkv_v4", 1.8, 1.3), ("mha_pro", 1.9, 1.2)):
        make_run(model, 1, here, data="enwik8")
        make_run(model, 1, there, data="simplebooks")
    first, second = comparison().blocks
    assert [row.label for row in first.rows] != [row.label for row in second.rows]
    assert {row.label: row.look for row in first.rows} == {row.label: row.look for row in second.rows}


def test_markdown_and_csv(study, comparison):
    found = comparison()
    text = tables.markdown(found, "python -m analysis compare runs/study")
    assert "| rwkv_v4 | 3 | 1.8000 ± 0.0010 | reference |" in text
    assert "study/rwkv_v1 seed 2 | failed: out of memory |" in text
    groups = list(csv.DictReader(io.StringIO(tables.groups_csv(found))))
    assert [row["group"] for row in groups] == ["rwkv_v4", "rwkv_v1", "mha_pro"]
    assert float(groups[2]["difference"]) == pytest.approx(0.1) and groups[2]["verdict"] == "beyond noise"
    assert groups[1]["val_bpb_final_std"] == ""
    runs = list(csv.DictReader(io.StringIO(tables.runs_csv(found))))
    assert len(runs) == 8
    assert [row["status"] for row in runs if row["reason"]] == ["failed"]
    failed = next(row for row in runs if row["status"] == "failed")
    assert float(failed["tokens"]) == pytest.approx(3e5)
    assert failed["val_bpb_final"] == "" and float(failed["val_bpb_last_measured"]) > 1.85


def test_a_bar_in_a_name_stays_in_its_cell(make_run, comparison):
    make_run("rwkv_v4", 1, status="failed", facts={"reason": "a | b\nc"})
    assert "failed: a \\| b c |" in tables.markdown(comparison(), "x")


def test_units_of_cells():
    assert (tables.number(1_620_000), tables.flops(2.5e15), tables.memory(2**20 * 1500)) == (
        "1.62M",
        "2.5e+15 FLOP",
        "1,500 MiB",
    )
    assert tables.time(4000) == "1:06:40"


@pytest.mark.parametrize("cell", [tables.number, tables.flops, tables.memory, tables.time, tables.bpb])
def test_an_unknown_number_is_a_dash(cell):
    assert cell(np.nan) == "–"


def test_a_note_says_what_the_other_notion_of_noise_would_see(make_run, comparison):
    for seed, step in ((1, -0.01), (2, 0.0), (3, 0.01)):
        for model, level in (("rwkv_v4", 1.80), ("rwkv_v1", 1.82), ("mha_pro", 2.5), ("mha_shift", 2.7)):
            make_run(model, seed, level + step * (1 if model == "rwkv_v1" else 0.5))
    (note,) = [note for note in notes(comparison()) if "--noise shared" in note]
    assert note.endswith("also differ from rwkv_v4 beyond noise: rwkv_v1.")
    assert not [note for note in notes(comparison(criteria=Criteria(shared_noise=True))) if "--noise" in note]


def test_a_note_says_where_noise_is_not_shared(make_run, comparison):
    for seed in range(8):
        for model, spread in (("rwkv_v4", 0.0001), ("mha_pro", 0.1)):
            make_run(model, seed, 1.8 + spread * (-1) ** seed)
    assert any("--noise own" in note for note in notes(comparison(criteria=Criteria(shared_noise=True))))


def wide(text: str) -> int:
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize("columns", [80, 120])
def test_the_terminal_tables_fit(make_run, comparison, capsys, monkeypatch, columns):
    """Names of a study of three tricks, on terminals of two widths and piped."""
    tricks = {"token_shift": "half", "head_qk_dim": 256, "small_init_emb": True}
    for seed in (1, 2):
        make_run("mha_rotary", seed, 1.9 + seed / 100)
        make_run("mha_rotary", seed, 1.8 + seed / 100, suffix="1", fields=tricks)
    make_run("rwkv_v1", 1, status="failed", facts={"reason": "out of memory " * 10})
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    tables.print_terminal(comparison())
    shown = capsys.readouterr().out
    assert wide(re.sub(r"\x1b\[[0-9;]*m", "", shown)) <= columns
    for cell in ("1.8150 ± 0.0071", "-0.1000" if "-0.1000" in shown else "+0.1000", "undecided"):
        assert cell in shown, "a number is never broken"
    monkeypatch.undo()
    tables.print_terminal(comparison())
    piped = capsys.readouterr().out
    assert wide(piped) <= tables.PIPED and not [line for line in piped.splitlines() if line != line.rstrip()]


def test_another_metric_ranks_and_judges(study, comparison):
    found = comparison(criteria=Criteria(metric="seconds"))
    (block,) = found.blocks
    fast, *_, slow = block.rows
    assert (fast.label, slow.label) == ("rwkv_v4", "mha_pro")
    assert slow.verdict.difference == pytest.approx(slow.mean("seconds") - fast.mean("seconds")) != pytest.approx(0.1)
    assert "vs best, equal-time" in tables.headings(block, found)
    assert "equal-time values" in tables.markdown(found, "x")


def test_runs_of_different_length_are_noted(make_run, comparison):
    make_run("rwkv_v4", 1)
    assert not any("own end" in note for note in notes(comparison()))
    make_run("mha_pro", 1, trainer__tokens=2_000_000, facts={"tokens": 2_000_000})
    assert any("trained for 1,000,000 to 2,000,000 tokens" in note for note in notes(comparison()))


def test_different_evaluations_are_named(make_run, comparison):
    make_run("rwkv_v4", 1, facts={"result": {"val_bpb": 1.8, "eval": "carried state"}})
    make_run("mha_pro", 1, facts={"result": {"val_bpb": 1.9, "eval": "sliding windows"}})
    assert any("carried state; sliding windows" in note for note in notes(comparison()))


def test_runs_without_bits_per_byte_show_loss_and_accuracy(make_run, comparison):
    for seed, accuracy in ((1, 0.5), (2, 0.7)):
        result = {"train_loss": 1.0, "val_loss": float(seed), "val_bpb": None, "val_accuracy": accuracy, "eval": "full"}
        file = make_run("rwkv_v4", seed, facts={"result": result}) / "metrics.csv"
        file.write_text(file.read_text().splitlines()[0] + "\n")
    (note,) = [note for note in notes(comparison()) if "accuracy" in note]
    assert "rwkv_v4 1.5000 and 0.6000" in note
