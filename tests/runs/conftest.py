"""Runs of two studies, in every status."""

from pathlib import Path

import pytest

from tests.runs.making import RESULT, make_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make_run(root, "one", "rwkv_v4-builtin-s1-aaaaaaaa", "complete", result=RESULT, ended="2026-01-02T00:00:00+00:00")
    make_run(root, "one", "rwkv_v4-builtin-s2-bbbbbbbb", "failed", reason="the loss became nan")
    make_run(root, "one", "mha_pro-enwik8-s1-cccccccc", "running")
    make_run(root, "two", "mha_pro-enwik8-s1-dddddddd", "failed", reason="No space left on device")
    return root
