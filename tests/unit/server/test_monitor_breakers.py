"""When a monitor that keeps failing is left alone, on a clock of its own."""

import pytest

from server.breaker import BreakerState, InWindow
from server.monitor_breakers import BreakerSettings, MonitorBreakers


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def states():
    return {}


@pytest.fixture
def breakers(clock, states):
    settings = BreakerSettings(failures=3, window_s=60, recovery_s=30)
    return MonitorBreakers(settings, clock=clock, on_change=states.__setitem__)


def fail(breakers, times, monitor="harm"):
    for _ in range(times):
        assert breakers.admit([monitor]) == frozenset()
        breakers.told(monitor, failed=True)


def test_each_monitor_has_its_own(breakers, states):
    fail(breakers, 3)
    assert breakers.admit(["harm", "leak"]) == {"harm"}
    assert states == {"harm": BreakerState.OPEN}


def test_failures_that_are_far_apart_do_not_open_it(breakers, clock):
    for _ in range(5):
        fail(breakers, 2)
        clock.now += 61
    assert breakers.admit(["harm"]) == frozenset()


def test_a_few_failures_among_many_successes_do_not_open_it(breakers):
    """Else one client whose requests fail could have it opened for all."""
    for _ in range(100):
        breakers.told("harm", failed=False)
    fail(breakers, 99)
    breakers.told("harm", failed=True)
    assert breakers.admit(["harm"]) == {"harm"}


def test_one_request_tries_and_closes_it_or_not(breakers, clock, states):
    fail(breakers, 3)
    clock.now += 30
    assert breakers.admit(["harm"]) == frozenset()
    assert states["harm"] is BreakerState.HALF_OPEN
    assert breakers.admit(["harm"]) == {"harm"}  # one at a time
    breakers.told("harm", failed=True)
    clock.now += 29
    assert breakers.admit(["harm"]) == {"harm"}
    clock.now += 1
    assert breakers.admit(["harm"]) == frozenset()
    breakers.told("harm", failed=False)
    assert states["harm"] is BreakerState.CLOSED
    fail(breakers, 2)  # it starts afresh
    assert breakers.admit(["harm"]) == frozenset()


def test_a_request_that_tried_and_was_never_heard_of_is_followed_by_another(breakers, clock):
    fail(breakers, 3)
    clock.now += 30
    assert breakers.admit(["harm"]) == frozenset()
    clock.now += 30
    assert breakers.admit(["harm"]) == frozenset()


def test_what_was_admitted_before_it_opened_neither_closes_nor_prolongs_it(breakers, clock, states):
    fail(breakers, 3)
    clock.now += 29
    breakers.told("harm", failed=False)
    breakers.told("harm", failed=True)
    assert states["harm"] is BreakerState.OPEN
    clock.now += 1
    assert breakers.admit(["harm"]) == frozenset()


def test_a_window_moves_in_halves():
    tally = InWindow(2, 10.0)
    assert not tally.add(failed=True, now=4.0)
    assert tally.add(failed=True, now=9.0)
    assert not tally.add(failed=True, now=21.0)
