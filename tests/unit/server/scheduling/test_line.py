"""The line: who is next, who must go, and that every place comes back."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scheduling.line import Line
from server.scheduling.turn import Turn
from server.scheduling.types import ClientGoneError, Priority, Standing, TurnedAwayError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


async def stays():
    return False


class Bench:
    """A line, and those who stand in it by name: `come("a", "acme")`, `leave("a")`; `inside` in order of entrance."""

    def __init__(self, **options):
        self.clock = Clock()
        self.line = Line(clock=self.clock, **{"slots": 1, "max_waiting": 100, "timeout_s": 30.0} | options)
        self.inside = []
        self.gone = set()
        self.tasks = {}
        self.turns = {}

    async def come(self, name, tenant="acme", weight=1.0, priority=Priority.NORMAL, size=1):
        async def is_gone():
            return name in self.gone

        turn = self.turns[name] = Turn(self.line, Standing(tenant, weight, priority), is_gone, self.clock)

        async def enter():
            await turn.enter(size)
            self.inside.append(name)

        self.tasks[name] = asyncio.create_task(enter())
        await self.settle()

    async def leave(self, name):
        self.turns[name].leave()
        await self.settle()

    async def settle(self):
        for _ in range(5):
            await asyncio.sleep(0)

    async def serve_all(self):
        """One leaves, one enters, until nobody waits."""
        for name in self.inside:  # grows meanwhile
            await self.leave(name)
        return self.inside

    def why(self, name):
        with pytest.raises(TurnedAwayError) as error:
            self.tasks[name].result()
        return error.value.reason


async def test_one_that_floods_waits_for_its_own():
    bench = Bench()
    for i in range(6):
        await bench.come(f"flood{i}", "flood")
    await bench.come("one", "small")
    await bench.come("two", "small")
    order = await bench.serve_all()
    assert order.index("one") <= 2
    assert order.index("two") <= 4
    assert [name for name in order if name.startswith("flood")] == [f"flood{i}" for i in range(6)]


@pytest.mark.parametrize(("weight", "held"), [(1.0, 2), (3.0, 3)])
async def test_places_are_shared_by_weight(weight, held):
    bench = Bench(slots=4)
    for i in range(12):
        await bench.come(f"heavy{i}", "heavy", weight)
    for i in range(12):
        await bench.come(f"light{i}", "light")
    for name in [f"heavy{i}" for i in range(4)]:
        await bench.leave(name)
    inside = bench.inside[4:]
    assert len([name for name in inside if name.startswith("heavy")]) == held
    assert len([name for name in inside if name.startswith("light")]) == 4 - held


async def test_who_stands_alone_may_have_all_places():
    bench = Bench(slots=4)
    for i in range(4):
        await bench.come(str(i), "acme", weight=0.1)
    assert len(bench.inside) == 4


async def test_priority_orders_a_tenants_own_and_nobody_elses():
    bench = Bench()
    await bench.come("first", "acme")
    await bench.come("low", "acme", priority=Priority.LOW)
    await bench.come("high", "acme", priority=Priority.HIGH)
    await bench.come("other", "clinic", priority=Priority.LOW)
    assert await bench.serve_all() == ["first", "high", "other", "low"]


async def test_nobody_gets_a_turn_by_having_been_away():
    """A tenant that comes late has not saved up turns for the time before."""
    bench = Bench()
    for i in range(20):
        await bench.come(f"a{i}", "a")
        if i < 10:
            await bench.leave(f"a{i}")
    for i in range(5):
        await bench.come(f"b{i}", "b")
    order = (await bench.serve_all())[11:]
    assert [name[0] for name in order[:8]] in (["a", "b"] * 4, ["b", "a"] * 4)


async def test_a_full_line_refuses_and_makes_room_for_who_has_fewer():
    bench = Bench(max_waiting=3)
    for i in range(5):
        await bench.come(f"flood{i}", "flood")
    assert bench.why("flood4") == "queue_full"
    await bench.come("small", "small")
    assert bench.why("flood3") == "queue_full"
    assert bench.line.waiting == 3
    await bench.come("more", "small")
    assert bench.why("more") == "queue_full", "it would have as many as the other"
    assert sorted(await bench.serve_all()) == ["flood0", "flood1", "flood2", "small"]


async def test_without_a_queue_only_free_places_count():
    bench = Bench(max_waiting=0)
    await bench.come("one")
    await bench.come("two")
    assert (bench.inside, bench.why("two")) == (["one"], "queue_full")
    await bench.leave("one")
    await bench.come("three")
    assert bench.inside == ["one", "three"]


async def test_a_request_of_many_responses_is_let_in_whole_and_counts_as_many():
    bench = Bench(slots=4)
    await bench.come("one")
    await bench.come("big", size=16)
    assert (bench.inside, bench.line.running) == (["one", "big"], 17)
    await bench.come("next")
    await bench.leave("one")
    assert bench.inside == ["one", "big"]
    await bench.leave("big")
    assert bench.inside == ["one", "big", "next"]


async def test_nobody_waits_longer_than_the_timeout(monkeypatch):
    monkeypatch.setattr("server.scheduling.line._LOOK_S", 0.01)
    bench = Bench(timeout_s=5)
    await bench.come("one")
    await bench.come("two")
    bench.clock.now += 5.1
    await asyncio.sleep(0.05)
    assert bench.why("two") == "queue_timeout"
    assert (bench.line.waiting, bench.line.running) == (0, 1)


async def test_who_would_wait_too_long_is_told_at_once_and_when_to_come_again():
    bench = Bench(timeout_s=5)
    await bench.come("one")
    bench.clock.now += 4  # a place is held for four seconds
    await bench.leave("one")
    for name in ("two", "three", "four"):
        await bench.come(name)
    await bench.come("five")
    assert bench.why("five") == "queue_timeout"
    with pytest.raises(TurnedAwayError) as error:
        bench.turns["five"].check()
    assert error.value.retry_after_s == pytest.approx(8)
    await bench.come("other", "clinic")
    assert not bench.tasks["other"].done(), "those who wait are not of its tenant"


async def test_who_leaves_while_waiting_is_forgotten(monkeypatch):
    monkeypatch.setattr("server.scheduling.line._LOOK_S", 0.01)
    bench = Bench()
    await bench.come("one")
    await bench.come("two")
    bench.gone.add("two")
    await asyncio.sleep(0.05)
    with pytest.raises(ClientGoneError):
        bench.tasks["two"].result()
    assert bench.line.waiting == 0


async def test_a_place_comes_back_from_who_is_cancelled_waiting_or_just_let_in():
    bench = Bench()
    await bench.come("one")
    await bench.come("two")
    await bench.come("three")
    bench.tasks["two"].cancel()
    await bench.settle()
    assert bench.line.waiting == 1
    bench.turns["one"].leave()  # three is granted the place, and is cancelled before it knows
    bench.tasks["three"].cancel()
    await bench.settle()
    assert (bench.line.waiting, bench.line.running, bench.inside) == (0, 0, ["one"])
    await bench.come("four")
    assert bench.inside == ["one", "four"]


async def test_leaving_twice_or_without_having_entered_does_nothing():
    bench = Bench()
    await bench.come("one")
    await bench.leave("one")
    await bench.leave("one")
    Turn(bench.line, Standing(), stays, bench.clock).leave()
    assert bench.line.running == 0


async def test_a_closed_line_turns_away_who_waits_and_who_comes():
    bench = Bench()
    await bench.come("one")
    await bench.come("two")
    bench.line.close()
    await bench.settle()
    await bench.come("three")
    assert [bench.why(name) for name in ("two", "three")] == ["draining", "draining"]


_EVENTS = st.lists(st.tuples(st.sampled_from(["come", "leave", "cancel"]), st.integers(0, 9)), max_size=60)


@given(_EVENTS, st.integers(1, 3), st.integers(0, 4))
async def test_whatever_happens_places_are_not_lost_and_nobody_waits_beside_a_free_one(events, slots, most):
    bench = Bench(slots=slots, max_waiting=most)
    comes = 0
    for what, number in events:
        if what == "come":
            comes += 1
            await bench.come(comes, f"t{number % 3}", size=1 + number // 8)
        elif what == "leave" and bench.inside:
            await bench.leave(bench.inside[number % len(bench.inside)])
        elif what == "cancel" and bench.tasks:
            bench.tasks[1 + number % len(bench.tasks)].cancel()
            await bench.settle()
        assert bench.line.running <= slots + 1
        assert bench.line.waiting <= most
        assert not bench.line.waiting or bench.line.running >= slots
    for _ in range(comes):
        for name in list(bench.inside):
            await bench.leave(name)
    assert all(task.done() for task in bench.tasks.values())
    assert (bench.line.running, bench.line.waiting, bench.line._tenants) == (0, 0, {})
    for task in bench.tasks.values():
        if not task.cancelled():
            task.exception()
