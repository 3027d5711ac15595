"""metrics.csv: columns, rows of earlier sessions, and its readers."""

from pathlib import Path

import numpy as np
import pytest

from rwkv_lab.runs.metrics import RowReader, last_step, read_metrics
from rwkv_lab.training.metrics import FIRST, OPTIONAL, MetricsLog, columns


def fill(file: Path, steps: range) -> MetricsLog:
    log = MetricsLog(file, steps.start - 1)
    for step in steps:
        log.append({"step": step, "tokens": 10 * step, "lr": 1e-3, "train_loss": 3 - step / 10})
    log.close()
    return log


def test_the_first_columns_are_the_format() -> None:
    assert list(columns())[: len(FIRST)] == list(FIRST)


def test_rows_past_the_checkpoint_and_torn_ones_are_cut(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    whole = fill(file, range(1, 5))
    with open(file, "a") as rows:
        rows.write("5,50,0.0")
    log = MetricsLog(file, 4)
    log.close()
    assert (log.kept, log.sha256) == (4, whole.sha256)
    assert MetricsLog(file, 2).kept == 2
    assert read_metrics(file)["step"].tolist() == [1, 2]


def test_a_column_that_is_not_measured_any_more_stays(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("step,old,train_loss\n1,7,2.5\n")
    fill(file, range(2, 3))
    read = read_metrics(file)
    assert list(read) == [*(name for name in columns() if name not in OPTIONAL), "old"]
    assert read["train_loss"].tolist() == [2.5, 2.8]
    assert read["old"][0] == 7 and np.isnan(read["old"][1])


def test_a_changed_digit_changes_the_hash(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    whole = fill(file, range(1, 5))
    file.write_text(file.read_text().replace("2.7", "2.8"))
    assert MetricsLog(file, 4).sha256 != whole.sha256


@pytest.mark.parametrize(
    ("content", "step"), [(None, 0), ("", 0), ("step,lr\n", 0), ("step,lr\n7,1\n", 7), ("step,lr\n7,1\n8,", 7)]
)
def test_last_step(tmp_path: Path, content: str | None, step: int) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    assert last_step(tmp_path / "metrics.csv") == step


def test_last_step_reads_the_end_only(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    with open(file, "wb") as rows:
        rows.truncate(1 << 40)  # a hole of a terabyte
        rows.seek(0, 2)
        rows.write(b"\n41,0.001\n42,0.001\n")
    assert last_step(file) == 42


def test_new_rows_are_read_once(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    reader = RowReader(file)
    assert reader.new() == []
    file.write_text("step,lr,val_loss\n1,0.5,\n2,0.")
    assert reader.new() == [{"step": 1, "lr": 0.5}]
    with open(file, "a") as rows:
        rows.write("25,3.5\n3,0.1,")
    assert reader.new() == [{"step": 2, "lr": 0.25, "val_loss": 3.5}]
    assert reader.new() == []
