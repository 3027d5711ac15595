"""Every law's columns against a loop that follows its formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from analysis.laws import annealing, functional, multi_power, power_time, registry, variational, vplus
from analysis.schedules.features import ScheduleFeatures

MOST = 40  # updates, few enough that a block is one update


@st.composite
def schedules(draw):
    """A warm-up, a peak and rates of any size up to it."""
    peak = draw(st.floats(1e-4, 1e-2))
    warmup = draw(st.integers(0, 5))
    after = draw(st.lists(st.floats(0.02, 1.0), min_size=2, max_size=MOST - 5))
    return peak * np.concatenate([np.arange(1, warmup + 1) / (warmup + 1), [1.0], after])


def every_state(eta):
    return ScheduleFeatures(eta, np.arange(len(eta) + 1))


def power(eta, a):
    sums = np.concatenate([[eta[0]], np.cumsum(eta)])
    return sums**-a


@given(schedules(), st.floats(0.001, 0.9))
def test_variational(eta, speed):
    beta = speed / eta.max()
    left, lagged = [1.0], [0.0]
    for rate in eta:
        left.append(left[-1] * (1 - beta * rate))
        lagged.append(lagged[-1] + beta * rate * (rate - lagged[-1]))
    columns = variational.columns(every_state(eta), {"beta": beta})
    np.testing.assert_allclose(columns, np.stack([1 - np.array(left), lagged, left], axis=1), rtol=1e-9, atol=1e-12)


@given(schedules(), st.floats(0.001, 0.9))
def test_variational_columns_are_the_recursion(eta, speed):
    L0, alpha, beta, loss = 2.0, 30.0, speed / eta.max(), [4.0]
    for rate in eta:
        loss.append(loss[-1] - beta * rate * (loss[-1] - L0 - alpha * rate))
    columns = variational.columns(every_state(eta), {"beta": beta})
    np.testing.assert_allclose(columns @ [L0, alpha, loss[0]], loss, rtol=1e-10)


def test_variational_stretches_are_exact_where_the_rate_is_constant():
    rates, lengths, beta = np.array([1e-3, 4e-4, 9e-4]), np.array([7, 5, 20]), 60.0
    full = variational.columns(ScheduleFeatures(np.repeat(rates, lengths), np.cumsum(lengths)), {"beta": beta})
    np.testing.assert_allclose(variational.pieces(lengths, rates, beta), full, rtol=1e-12)


@given(schedules(), st.floats(0.1, 2.0), st.floats(0.001, 0.9))
def test_vplus(eta, a, speed):
    beta, lagged = speed / eta.max(), [0.0]
    for rate in eta:
        lagged.append(lagged[-1] + beta * rate * (rate - lagged[-1]))
    columns = vplus.columns(every_state(eta), {"a": a, "beta": beta})
    np.testing.assert_allclose(columns, np.stack([np.ones(len(eta) + 1), power(eta, a), lagged], axis=1), rtol=1e-9)


@given(schedules(), st.floats(0.1, 2.0), st.floats(0.001, 0.9), st.floats(0.3, 1.3))
def test_power_time(eta, a, speed, p):
    reference = 2 * eta.max()
    rates = [reference * (rate / reference) ** p for rate in eta]
    beta, lagged = speed / max(rates), [0.0]
    for rate, pace in zip(eta, rates, strict=True):
        lagged.append(lagged[-1] + beta * pace * (rate - lagged[-1]))
    path = ScheduleFeatures(eta, np.arange(len(eta) + 1), reference)
    columns = power_time.columns(path, {"a": a, "beta": beta, "p": p})
    np.testing.assert_allclose(columns[:, 1], power(np.array(rates), a), rtol=1e-9)
    np.testing.assert_allclose(columns[:, 2], lagged, rtol=1e-9)


@given(schedules())
def test_annealing(eta):
    peak = int(np.argmin(np.append(np.diff(eta) > 0, False)))
    areas = []
    for state in range(len(eta) + 1):
        area = 0.0
        for i in range(state):
            for k in range(peak + 1, i + 1):
                area += (eta[k - 1] - eta[k]) * annealing.MEMORY ** (i - k)
        areas.append(area)
    columns = annealing.columns(every_state(eta), {"a": 0.5})
    np.testing.assert_allclose(columns[:, 2], -np.array(areas), rtol=1e-9, atol=1e-15)


@given(schedules(), st.floats(0.05, 2.0), st.floats(0.1, 1.0))
def test_multi_power(eta, b, g):
    C = eta.max() ** g / (10 * eta.max())
    peak = int(np.argmin(np.append(np.diff(eta) > 0, False)))
    sums = np.concatenate([[0.0], np.cumsum(eta)])
    gains = []
    for state in range(len(eta) + 1):
        gain = 0.0
        for k in range(peak + 1, state):
            since = max(sums[state], eta[0]) - sums[k]
            gain += (eta[k] - eta[k - 1]) * (1 - (1 + C * eta[k] ** -g * since) ** -b)
        gains.append(gain)
    columns = multi_power.columns(every_state(eta), {"a": 0.5, "C": C, "g": g, "b": b})
    np.testing.assert_allclose(columns[:, 2], gains, rtol=1e-8, atol=1e-15)


@settings(max_examples=20)
@given(schedules(), st.floats(0.3, 3.0), st.floats(-0.3, 0.5))
def test_functional(eta, kappa, d):
    tau = 5 * eta.max()
    sums = np.concatenate([[0.0], np.cumsum(eta)])
    state = len(eta)
    noise = 0.0
    for k in range(state):
        integral, _ = quad(lambda s: (1 + (sums[state] - s) / tau) ** -kappa, sums[k], sums[k + 1])
        noise += eta[k] * ((sums[k] + sums[k + 1]) / 2) ** -d * integral
    columns = functional.columns(every_state(eta), {"a": 0.5, "tau": tau, "kappa": kappa, "d": d})
    assert columns[-1, 2] == pytest.approx(noise, rel=1e-7)


def test_functional_kernel_of_power_one():
    eta = np.full(30, 1e-3)
    near = functional.columns(every_state(eta), {"a": 0.5, "tau": 5e-3, "kappa": 1 + 1e-5, "d": 0.0})
    at = functional.columns(every_state(eta), {"a": 0.5, "tau": 5e-3, "kappa": 1.0, "d": 0.0})
    np.testing.assert_allclose(at, near, rtol=1e-4)


@pytest.mark.parametrize("name", [law.name for law in registry.laws()])
def test_where_blocks_are_cut_hardly_matters(name):
    """A schedule cut into blocks gives the columns of one cut elsewhere, within 2e-3 of their size."""
    from rwkv_lab.training.schedules import rates

    law = registry.get(name)
    eta = rates("wsd", 4000, lr_init=1e-3, lr_final=1e-4, warmup_steps=100)
    nonlinear = {p.name: p.usual for p in law.nonlinear(1e-3)}
    at = np.array([500, 3300, 3600, 4000])
    coarse = law.columns(ScheduleFeatures(eta, at, 1e-3), nonlinear)
    fine = [law.columns(ScheduleFeatures(eta[:stop], np.array([stop]), 1e-3), nonlinear)[0] for stop in at]
    scale = np.abs(coarse).max(axis=0)
    np.testing.assert_allclose(coarse / scale, np.array(fine) / scale, atol=2e-3)


@pytest.mark.parametrize("name", [law.name for law in registry.laws()])
def test_a_law_says_what_it_is(name):
    law = registry.get(name)
    assert law.name == name
    assert law.formula and law.source
    for parameter in law.nonlinear(1e-3):
        assert parameter.low < parameter.usual < parameter.high
        assert parameter.value(parameter.coordinate(parameter.usual)) == pytest.approx(parameter.usual)
