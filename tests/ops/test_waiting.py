"""Threads sleep while other processes want the cores, and the results stay."""

import threading
import time
from pathlib import Path

import pytest
import torch

from rwkv_lab.ops import waiting
from rwkv_lab.ops.waiting import IdleTeam, Mode, sharing_cores


def test_the_mode_follows_the_delay():
    mode = Mode()
    assert [mode.look(delay) for delay in (0.0, 0.04, 0.3, 0.03, 0.0, 0.0, 0.0, 0.0)] == [
        *(False, False, True, True),
        *(True, True, True, False),
    ]
    assert [mode.look(delay) for delay in (0.2, 0.0, 0.0, 0.0, 0.03, 0.0)][-1]  # calm looks in a row only


def threads():
    return len(list(Path("/proc/self/task").iterdir()))


def test_an_idle_team_comes_and_goes():
    torch.ones(1)
    library = waiting._gnu_openmp()
    if library is None:
        pytest.skip("torch has no GNU OpenMP here")
    team, before = IdleTeam(library, 2), threads()
    for _ in range(2):
        team.begin()
        team.begin()
        assert threads() == before + 3  # the thread that has the team, and two of its three
        team.end()
        for _ in range(100):
            if threads() == before:
                break
            time.sleep(0.01)
        assert threads() == before


def test_a_crowded_process_has_the_team_until_the_end(monkeypatch):
    """Results are the same bits with it."""
    if waiting._gnu_openmp() is None:
        pytest.skip("torch has no GNU OpenMP here")
    before = set(threading.enumerate())
    waited, begun = iter(range(10**6)), threading.Event()
    monkeypatch.setattr(waiting, "_seconds_waited", lambda: next(waited))
    monkeypatch.setattr(waiting, "INTERVAL", 0.001)
    begin = IdleTeam.begin
    monkeypatch.setattr(IdleTeam, "begin", lambda team: (begin(team), begun.set()))
    x = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(1))
    expected = x.sigmoid()
    with sharing_cores(2):
        assert begun.wait(10)
        assert torch.equal(x.sigmoid(), expected)
    assert not [thread for thread in threading.enumerate() if thread.daemon and thread not in before]


def test_one_thread_is_left_alone():
    before = threads()
    with sharing_cores(1):
        assert threads() == before
