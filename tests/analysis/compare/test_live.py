"""The page of a study in progress: when it is written anew, and to whom it is served."""

import urllib.error
import urllib.request

import pytest

from analysis.cli import main
from analysis.compare import live
from rwkv_lab.config.errors import UserError


def test_the_page_follows_its_runs_and_stays(make_run, tmp_path):
    folder = make_run(seed=1)
    written, waits = [], []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            (folder / "metrics.csv").write_text("step,train_loss\n1,4.0\n")

    live.follow([str(tmp_path / "runs")], written.append, wait)
    assert written == [True, True, False]
    assert sum(waits) == live.QUIET


def test_ctrl_c_leaves_the_page(make_run, tmp_path):
    make_run(seed=1)
    written = []

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    live.follow([str(tmp_path / "runs")], written.append, interrupted)
    assert written == [True, False]


def ask(address: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, b""


def test_the_page_alone_is_served_and_to_this_machine_only(tmp_path):
    page = tmp_path / "compare.html"
    page.write_text("first")
    (tmp_path / "secret").write_text("secret")
    with live.served(page, 0) as address:
        assert address.startswith("http://127.0.0.1:")
        assert ask(address) == (200, b"first")
        page.write_text("second")
        assert ask(f"{address}compare.html") == (200, b"second")
        assert ask(f"{address}secret")[0] == ask(f"{address}../secret")[0] == 404
        assert ask(address, Host="elsewhere.example:80")[0] == 403
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(UserError, match=f"--serve {port}"), live.served(page, port):
            pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address)


def test_a_watched_page_reloads_itself_until_the_end(make_run, tmp_path, monkeypatch, capsys):
    make_run(seed=1)
    out = tmp_path / "out"
    seen = []
    monkeypatch.setattr(live, "follow", lambda paths, write: seen.append((out / "compare.html").read_text()))
    monkeypatch.setattr("analysis.compare.figures.write_figures", lambda comparison, folder: [])
    assert main(["compare", str(tmp_path / "runs"), "--out", str(out), "--watch"]) == 0
    assert 'http-equiv="refresh"' in seen[0]
    assert 'http-equiv="refresh"' not in (out / "compare.html").read_text()
    assert "127.0.0.1" not in capsys.readouterr().out
    with pytest.raises(UserError, match="--watch"):
        main(["compare", str(tmp_path / "runs"), "--out", str(out), "--serve"])
