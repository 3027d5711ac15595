"""Requests to stop: what the first does, what a later one does, and what stays in force."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from rwkv_lab.util import signals
from rwkv_lab.util.signals import SIGNALS, Stopped, StopSignals


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every signal after the first is a second request; the handlers of pytest come back."""
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", -1.0)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ask(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.getsignal(number)  # lets the handler run


@pytest.mark.parametrize("number", SIGNALS)
def test_by_default_every_request_is_ctrl_c(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                ask(number)
    assert stop.requested
    assert signal.getsignal(number) is before


def test_the_same_request_by_another_way_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 500.0)
    asked: list[str] = []
    with StopSignals(lambda: asked.append("first"), lambda: asked.append("again")):
        ask(signal.SIGINT)
        ask(signal.SIGTERM)
    assert asked == ["first"]


def test_a_flag_and_then_what_was_in_force_before() -> None:
    with StopSignals() as outer, StopSignals(None, None) as stop:
        ask(signal.SIGTERM)
        assert stop.requested and not outer.requested
        with pytest.raises(KeyboardInterrupt):
            ask(signal.SIGTERM)


def test_a_later_request_is_passed_on() -> None:
    asked: list[str] = []
    with StopSignals(lambda: asked.append("first"), lambda: asked.append("again")):
        ask(signal.SIGINT)
        ask(signal.SIGHUP)
    assert asked == ["first", "again"]


def test_left_by_its_exception_it_stays_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 500.0)
    with pytest.raises(Stopped) as stopped, StopSignals(None, None, lasting=Stopped) as stop:
        raise Stopped(7)
    assert stopped.value.step == 7 and stop.requested
    ask(signal.SIGTERM)  # the request another process of the run has had already


def test_nohup_and_other_threads_are_left_alone() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def elsewhere() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
