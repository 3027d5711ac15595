"""The figures for papers: units, legends and names, read off the figures themselves."""

from itertools import product

import pytest

from analysis.compare.figures import COLOURED, final_figure, loss_figure, prediction_figure, unit_of
from analysis.compare.records import collect
from analysis.compare.summary import compare
from analysis.compare.swept import swept, swept_chart, swept_figure
from analysis.compare.tables import markdown
from analysis.curves import load
from analysis.fit import fit
from analysis.plots import style
from analysis.plots.style import paper


@pytest.fixture
def block(tmp_path, fingerprint):
    """The first block of all runs made so far."""
    return lambda: compare("study", collect([tmp_path / "runs"], fingerprint)).blocks[0]


@pytest.mark.parametrize(
    ("axis", "largest", "unit"),
    [
        ("seconds", 65, (1, "training time (seconds)")),
        ("seconds", 600, (60, "training time (minutes)")),
        ("seconds", 9000, (3600, "training time (hours)")),
        ("tokens", 1e6, (1e6, "training tokens (millions)")),
        ("flops", 3.0, (1e9, "training compute (GFLOP)")),
    ],
)
def test_units(axis, largest, unit):
    assert unit_of(axis, largest) == unit


def tick_labels(ax) -> list[str]:
    return [label.get_text() for label in ax.get_xticklabels()]


def legend_of(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def inside(figure) -> bool:
    """Whether all that is drawn lies within the figure, which a saved file would cut off."""
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return drawn.x0 > -0.02 and drawn.y0 > -0.02 and drawn.x1 < width + 0.02 and drawn.y1 < height + 0.02


@pytest.mark.slow
def test_both_panels_have_one_unit_and_short_ticks(make_run, block):
    for seed in (1, 2):
        make_run("rwkv_v4", seed, speed=1e6 / 65)
    for axis in ("tokens", "seconds", "flops"):
        with paper():
            figure = loss_figure(block(), axis)
            figure.draw_without_rendering()
        left, right = figure.axes
        assert left.get_xlabel() == right.get_xlabel()
        assert all(len(text) <= 4 for ax in figure.axes for text in tick_labels(ax)), tick_labels(left)


@pytest.mark.slow
def test_long_names_are_all_in_the_legend_and_nothing_is_cut(make_run, block):
    """Names that are alike in all that a legend has room for."""
    for i in range(3):
        make_run("rwkv_v4", 1, suffix=str(i), fields={"a_key_of_a_long_name" * 3: f"{'a long value ' * 8}{i}"})
    with paper():
        curves, final = loss_figure(block(), "tokens"), final_figure(block())
        assert len(legend_of(curves)) == 3
        assert inside(curves) and inside(final)


@pytest.mark.slow
def test_a_study_of_tricks_fits(make_run, block):
    tricks = {"token_shift": "half", "small_init_emb": True, "head_qk_dim": 256}
    for i in range(4):
        make_run("mha_rotary", 1, 1.8 + i / 10, suffix=str(i), fields=dict(list(tricks.items())[:i]))
    with paper():
        curves, final = loss_figure(block(), "tokens"), final_figure(block())
        assert "mha_rotary token_shift half small_init_emb head_qk_dim 256" in legend_of(curves)
        assert inside(curves) and inside(final)


@pytest.mark.slow
def test_what_did_not_finish_is_named_and_many_groups_are_grey(make_run, block):
    make_run("mha_pro", 1, status="failed", part=0.6)
    for i in range(COLOURED + 5):
        make_run("rwkv_v4", 1, 1.8 + i / 100, suffix=str(i), schedule__lr_init=1e-3 * (i + 1))
    with paper():
        names = legend_of(loss_figure(block(), "tokens"))
        assert len(names) == COLOURED + 1 and names[-1] == "6 others"
        assert len(final_figure(block()).axes[0].get_yticklabels()) == COLOURED + 5


@pytest.mark.slow
def test_a_group_without_a_finished_run_is_in_the_legend(make_run, block):
    make_run("rwkv_v4", 1)
    make_run("mha_pro", 1, status="failed", part=0.6)
    with paper():
        assert legend_of(loss_figure(block(), "tokens")) == ["rwkv_v4", "mha_pro (not finished)"]


def test_names_in_lines_and_in_short():
    assert style.wrapped("mha_rotary token_shift half small_init_emb") == "mha_rotary token_shift half\nsmall_init_emb"
    assert style.wrapped("x" * 40, 10) == "xxxxxx…xxx"
    assert style.shortened("short") == "short" and len(style.shortened("y" * 200)) == 64


def test_no_two_looks_are_alike():
    looks = [style.style(i) for i in range(49)]
    assert len({(look.colour, look.mpl_marker) for look in looks}) == 49


def test_a_grid_has_a_colour_a_model_and_a_dash_a_rate(make_run, block):
    for i, (model, rate) in enumerate(product(("rwkv_v4", "mha_pro"), (1e-3, 2e-3, 4e-3))):
        make_run(model, 1, 1.8 + i / 100, suffix=str(i), schedule__lr_init=rate)
    looks = {(row.group.own["model.name"], row.group.own["schedule.lr_init"]): row.style for row in block().rows}
    assert len(looks) == len(set(map(str, looks.values()))) == 6
    for (model, rate), look in looks.items():
        assert look.colour == looks[model, 1e-3].colour
        assert (look.mpl_dash, look.mpl_marker) == (looks["rwkv_v4", rate].mpl_dash, looks["rwkv_v4", rate].mpl_marker)
    assert looks["rwkv_v4", 1e-3].colour != looks["mha_pro", 1e-3].colour
    assert looks["rwkv_v4", 1e-3].mpl_dash != looks["rwkv_v4", 2e-3].mpl_dash


def test_more_values_than_looks_are_no_grid(make_run, block):
    for i, model in enumerate(("rwkv_v4", "mha_pro")):
        for j in range(len(style.GRID_DASHES) + 1):
            make_run(model, 1, suffix=f"{i}{j}", schedule__lr_init=1e-3 * (j + 1))
    rows = block().rows
    assert [row.style for row in rows] == [style.style(row.look) for row in rows]


def test_final_loss_against_a_swept_number(make_run, block):
    """One line a model over every rate; a third key leaves its lowest group, and the others as dots."""
    for i, (model, rate, width) in enumerate(product(("rwkv_v4", "mha_pro"), (1e-3, 4e-3), (0, 256))):
        final = 1.8 + 0.1 * (model == "mha_pro") - 10 * rate + width / 1e4
        make_run(model, 1, final, suffix=str(i), schedule__lr_init=rate, fields={"head_qk_dim": width})
    by_key = {one.key: one for one in swept(block())}
    assert set(by_key) == {"schedule.lr_init", "model.head_qk_dim"}
    rates = by_key["schedule.lr_init"]
    assert rates.logarithmic and not by_key["model.head_qk_dim"].logarithmic
    assert {line.name: line.x for line in rates.lines} == {"rwkv_v4": (1e-3, 4e-3), "mha_pro": (1e-3, 4e-3)}
    assert rates.best == pytest.approx((4e-3, 1.76)) and len(rates.others) == 4
    with paper():
        (ax,) = swept_figure(rates).axes
    assert ax.get_xscale() == "log" and [label.get_text() for label in ax.get_xticklabels()] == ["1e-3", "4e-3"]
    assert swept_chart(rates, 0).tags == ["swept", 0]


def test_one_value_is_not_drawn(make_run, block):
    make_run("rwkv_v4", 1)
    make_run("mha_pro", 1)
    assert swept(block()) == []


def test_a_run_trained_from_a_fit_is_drawn_over_its_prediction(make_run, fingerprint, tmp_path):
    fitted = fit([load(make_run(seed=1))])
    (tmp_path / "fit.json").write_text(fitted.to_json())
    predicted = {"final_loss": 1.3, "interval": [1.2, 1.4], "level": 0.9, "column": "train_loss", "law": "auto"}
    path = make_run(seed=2, facts={"predicted": predicted | {"fit": str(tmp_path / "fit.json")}})
    gone = make_run(seed=3, facts={"predicted": predicted | {"fit": str(tmp_path / "gone.json")}})
    records = collect([path, gone], fingerprint)
    figure = prediction_figure(records)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines][-1] == "measured"
    assert prediction_figure(collect([gone], fingerprint)) is None
    table = markdown(compare("loop", records), "compare")
    assert table.count("| inside |") == 2
