"""When a monitor that keeps failing is left alone, on a clock of its own."""

import asyncio

import pytest

from server.breaker import BreakerState, InWindow
from server.monitor_breakers import BreakerSettings, MonitorBreakers

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


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


class Probe:
    """What trying comes to, and how often it was asked."""

    result = True
    num_asked = 0

    async def __call__(self, monitor):
        self.num_asked += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def probe():
    return Probe()


@pytest.fixture
def breakers(clock, states, probe):
    settings = BreakerSettings(failures=3, window_s=60, recovery_s=30)
    return MonitorBreakers(settings, probe=probe, clock=clock, on_change=states.__setitem__)


async def tried(breakers):
    await asyncio.gather(*breakers._probing)


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


async def test_it_is_tried_when_its_time_is_up_and_closes_or_not(breakers, clock, states, probe):
    fail(breakers, 3)
    clock.now += 29
    assert breakers.admit(["harm"]) == {"harm"}
    assert probe.num_asked == 0
    probe.result = False
    clock.now += 1
    assert breakers.admit(["harm"]) == {"harm"}  # who comes first does without it, too
    assert states["harm"] is BreakerState.HALF_OPEN
    assert breakers.admit(["harm"]) == {"harm"}
    await tried(breakers)
    assert (probe.num_asked, states["harm"]) == (1, BreakerState.OPEN)
    probe.result = RuntimeError("the engine fails")
    clock.now += 30
    assert breakers.admit(["harm"]) == {"harm"}
    await tried(breakers)
    assert (probe.num_asked, states["harm"]) == (2, BreakerState.OPEN)
    probe.result = True
    clock.now += 30
    assert breakers.admit(["harm"]) == {"harm"}
    await tried(breakers)
    assert states["harm"] is BreakerState.CLOSED
    fail(breakers, 2)  # it starts afresh
    assert breakers.admit(["harm"]) == frozenset()


async def test_a_try_that_is_never_heard_of_is_followed_by_another(breakers, clock, probe):
    fail(breakers, 3)
    clock.now += 30
    breakers.admit(["harm"])
    for task in breakers._probing:
        task.cancel()
    clock.now += 30
    breakers.admit(["harm"])
    await asyncio.wait(breakers._probing)
    assert breakers.admit(["harm"]) == frozenset()


async def test_what_was_admitted_before_it_opened_neither_closes_nor_prolongs_it(
    breakers, clock, states, probe
):
    fail(breakers, 3)
    clock.now += 29
    breakers.told("harm", failed=False)
    breakers.told("harm", failed=True)
    assert states["harm"] is BreakerState.OPEN
    clock.now += 1
    breakers.admit(["harm"])
    for failed in (False, True):  # nor while it is tried
        breakers.told("harm", failed=failed)
        assert states["harm"] is BreakerState.HALF_OPEN
    await tried(breakers)
    assert (probe.num_asked, states["harm"]) == (1, BreakerState.CLOSED)


def test_a_window_moves_in_halves():
    tally = InWindow(2, 10.0)
    assert not tally.add(failed=True, now=4.0)
    assert tally.add(failed=True, now=9.0)
    assert not tally.add(failed=True, now=21.0)
