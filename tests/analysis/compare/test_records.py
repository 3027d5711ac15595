"""Runs are read whatever state they are in."""

from pathlib import Path

import numpy as np
import pytest

from analysis.compare.records import collect
from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import store


def statuses(tmp_path: Path, fingerprint: str) -> dict[str, str]:
    return {record.name.split("-")[2]: record.status for record in collect([tmp_path / "runs"], fingerprint)}


def test_every_state_is_kept(tmp_path, make_run, fingerprint):
    make_run(seed=1)
    make_run(seed=2, facts={"code": "other code"})
    make_run(seed=3, status="running", part=0.5)
    make_run(seed=4, status="failed", part=0.5, facts={"reason": "out of memory"})
    (make_run(seed=5) / "run.json").write_text("{ torn")
    held = store.lock(make_run(seed=6, status="running", part=0.5))
    assert held is not None
    with held:
        found = statuses(tmp_path, fingerprint)
    assert found == {
        "s1": "complete",
        "s2": "stale",
        "s3": "interrupted",
        "s4": "failed",
        "s5": "unreadable",
        "s6": "running",
    }


def test_what_happened_is_said(tmp_path, make_run, fingerprint):
    make_run(seed=1, status="failed", facts={"reason": "the loss became NaN"})
    make_run(seed=2, facts={"code": "other code"})
    (make_run(seed=3) / "config.yaml").write_text("a: [")
    failed, stale, unreadable = collect([tmp_path / "runs"], fingerprint)
    assert failed.reason == "the loss became NaN"
    assert "01234567" in stale.reason
    assert "config.yaml" in unreadable.reason


def test_a_missing_column_or_file_is_no_error(tmp_path, make_run, fingerprint):
    folder = make_run(seed=1, sample=None)
    (folder / "metrics.csv").write_text("step,tokens\n10,100\n20,200\n")
    (record,) = collect([folder], fingerprint)
    assert record.sample == ""
    assert np.isnan(record.column("val_bpb")).all() and len(record.column("val_bpb")) == 2
    (folder / "metrics.csv").unlink()
    assert len(collect([folder], fingerprint)[0].column("tokens")) == 0


def test_nothing_to_compare_is_a_mistake(tmp_path, fingerprint):
    with pytest.raises(UserError, match="no runs in it"):
        collect([tmp_path], fingerprint)
