"""Logs of other tools give the curve that a plain CSV gives."""

import json

import numpy as np
import pytest

from analysis.curves import load
from analysis.curves.loading import Reading
from rwkv_lab.config.errors import UserError

STEP = np.arange(0, 400, 10)
LOSS = 3 + 2 * (STEP + 20.0) ** -0.4
RATE = np.linspace(1e-3, 1e-4, len(STEP))


def table(separator=",", names=("step", "lr", "loss"), step=STEP):
    rows = [separator.join(names)]
    rows += [separator.join((str(s), f"{r:.9g}", f"{x:.9g}")) for s, r, x in zip(step, RATE, LOSS, strict=True)]
    return "\n".join(rows) + "\n"


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text(table())
    return load(path)


def check(curve, plain):
    np.testing.assert_array_equal(curve.step, plain.step)
    np.testing.assert_allclose(curve.loss, plain.loss, rtol=1e-6)
    np.testing.assert_allclose(curve.lr, plain.lr, rtol=1e-6)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path, plain, encoding):
    path = tmp_path / "log.csv"
    path.write_text(table(), encoding=encoding)
    check(load(path), plain)


def test_semicolons_and_decimal_commas(tmp_path, plain):
    path = tmp_path / "log.csv"
    path.write_text(table(";").replace(".", ","))
    check(load(path), plain)


def test_a_csv_of_wandbs_page(tmp_path, plain):
    path = tmp_path / "log.csv"
    names = ("Step", "brave-sun-7 - lr", "brave-sun-7 - val/loss", "brave-sun-7 - val/loss__MIN")
    rows = [",".join(f'"{name}"' for name in names)]
    rows += [f"{s},{r:.9g},{x:.9g},{x - 1:.9g}" for s, r, x in zip(STEP, RATE, LOSS, strict=True)]
    path.write_text("\n".join(rows))
    check(load(path, "val/loss"), plain)


def test_a_row_number_of_wandb_is_not_the_step_where_another_column_is(tmp_path, plain):
    path = tmp_path / "log.csv"
    rows = ["_step,trainer/global_step,lr,loss"]
    rows += [f"{i},{s},{r:.9g},{x:.9g}" for i, (s, r, x) in enumerate(zip(STEP, RATE, LOSS, strict=True))]
    path.write_text("\n".join(rows))
    check(load(path), plain)
    assert len(load(path, reading=Reading("_step")).lr) == len(STEP)


def test_tokens_as_the_axis(tmp_path, plain):
    path = tmp_path / "log.csv"
    path.write_text(table(names=("tokens", "lr", "loss"), step=STEP * 4096))
    check(load(path, reading=Reading("tokens", 4096)), plain)
    with pytest.raises(UserError, match=r"toks.*did you mean 'tokens'"):
        load(path, reading=Reading("toks"))


def test_nanogpt(tmp_path, plain):
    path = tmp_path / "train.log"
    lines = ["tokens per iteration will be: 4,096"]
    for s, r, x in zip(STEP, RATE, LOSS, strict=True):
        if s % 100 == 0:
            lines.append(f"step {s}: train loss 9.0000, val loss 8.5000")
        lines.append(f"iter {s}: loss {x:.9f}, lr {r:.9g}, time 20.01ms, mfu 30.00%")
    path.write_text("\n".join(lines))
    check(load(path, "train_loss"), plain)
    path.write_text("nothing here")
    with pytest.raises(UserError, match="iter 250"):
        load(path)


def test_hugging_face(tmp_path, plain):
    path = tmp_path / "trainer_state.json"
    history = [
        {"step": int(s), "learning_rate": r, "loss": x, "epoch": 0.1} for s, r, x in zip(STEP, RATE, LOSS, strict=True)
    ]
    path.write_text(json.dumps({"global_step": 400, "log_history": [*history, {"step": 399, "eval_loss": 2.5}]}))
    check(load(path, "train_loss"), plain)


def test_tensorboard(tmp_path, plain):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "events")) as writer:
        for s, r, x in zip(STEP.tolist(), RATE, LOSS, strict=True):
            writer.add_scalar("train/loss", x, s)
            writer.add_scalar("train/lr", r, s)
    check(load(tmp_path / "events", "train_loss"), plain)


def test_bits_are_converted(tmp_path, plain):
    path = tmp_path / "log.csv"
    path.write_text(table(names=("step", "lr", "val_bpb")))
    curve = load(path, "val_bpb")
    np.testing.assert_allclose(curve.loss, plain.loss * np.log(2), rtol=1e-6)
    assert any("bits" in note for note in curve.notes)
