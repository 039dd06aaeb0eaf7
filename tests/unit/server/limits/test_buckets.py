"""Buckets against their plain definition, and what a request is told of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.limits.allowance import Allowance, OverLimitError, duration
from server.limits.memory import MemoryStore
from server.limits.types import Draw, Limit, Unit

REQUESTS = Limit("k:requests", Unit.REQUESTS, 6, 60.0)  # one in ten seconds
TOKENS = Limit("k:tokens", Unit.TOKENS, 600, 60.0)  # ten a second
OF_TENANT = Limit("t:tokens", Unit.TOKENS, 1000, 60.0)
BLOCKS = Limit("k:blocks", Unit.BLOCKS, 2, 3600.0)


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def allowances(*limits):
    clock = Clock()
    store = MemoryStore(clock)
    return clock, lambda: Allowance(store, limits)


async def why(call):
    with pytest.raises(OverLimitError) as error:
        await call
    return error.value.why


pytestmark = pytest.mark.anyio


async def test_a_burst_up_to_the_limit_then_as_fast_as_the_bucket_fills():
    clock, new = allowances(REQUESTS)
    for _ in range(6):
        await new().take_request()
    over = await why(new().take_request())
    assert (over.unit, over.limit, over.wait_s) == (Unit.REQUESTS, 6, pytest.approx(10))
    clock.now += 9.9
    await why(new().take_request())
    clock.now += 0.2
    await new().take_request()
    await why(new().take_request())
    clock.now += 1e6
    for _ in range(6):
        await new().take_request()
    await why(new().take_request())


async def test_tokens_asked_for_are_reserved_and_what_was_not_used_comes_back():
    _, new = allowances(TOKENS)
    one = new()
    await one.take_tokens(100, 400)
    assert (await why(new().take_tokens(101, 0))).wait_s == pytest.approx(0.1)
    one.ran(50, blocked=False)
    await one.settle()  # 150 of 500
    other = new()
    await other.take_tokens(450, 0)
    assert other.headers["x-ratelimit-remaining-tokens"] == "0"


async def test_a_response_of_unsaid_length_may_owe_and_then_nothing_is_admitted():
    clock, new = allowances(TOKENS)
    one = new()
    await one.take_tokens(10, 0)
    one.ran(700, blocked=False)
    await one.settle()
    over = await why(new().take_request())
    assert (over.unit, over.wait_s) == (Unit.TOKENS, pytest.approx(11))
    clock.now += 11.01
    await new().take_request()


async def test_what_never_began_costs_no_tokens():
    _, new = allowances(TOKENS)
    for _ in range(5):
        shed = new()
        await shed.take_tokens(300, 300)
        await shed.settle()


async def test_choices_of_one_prompt_pay_for_it_once():
    _, new = allowances(TOKENS)
    one = new()
    await one.take_tokens(100, 0)
    one.ran(20, blocked=False)
    await one.settle()
    one.ran(30, blocked=False)
    await one.settle()
    after = new()
    await after.take_tokens(1, 0)
    assert after.headers["x-ratelimit-remaining-tokens"] == "449"


async def test_a_request_larger_than_the_limit_is_told_that_waiting_does_not_help():
    _, new = allowances(TOKENS)
    over = await why(new().take_tokens(1, 600))
    assert (over.asked, over.wait_s) == (601, None)


async def test_all_limits_must_hold_and_none_is_drawn_from_if_one_does_not():
    _, new = allowances(TOKENS, OF_TENANT)
    await new().take_tokens(600, 0)  # the tenant has 400 left
    assert (await why(new().take_tokens(300, 0))).limit == 600
    tenant = Allowance(new()._store, [OF_TENANT])
    await tenant.take_tokens(400, 0)


async def test_headers_show_the_tightest_limit():
    _, new = allowances(REQUESTS, TOKENS, OF_TENANT, BLOCKS)
    one = new()
    await one.take_request()
    assert one.headers == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "10s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "600",
        "x-ratelimit-reset-tokens": "0ms",
    }


async def test_blocked_requests_are_strikes_and_a_request_is_one_strike_at_most():
    clock, new = allowances(BLOCKS)
    for _ in range(2):
        one = new()
        await one.take_request()
        one.ran(0, blocked=True)
        await one.settle()
        one.ran(0, blocked=True)
        await one.settle()
    over = await why(new().take_request())
    assert (over.unit, over.wait_s) == (Unit.BLOCKS, pytest.approx(1800))
    clock.now += 1801
    await new().take_request()


async def test_without_limits_everything_passes():
    one = Allowance()
    await one.take_request()
    await one.take_tokens(10**9, 10**9)
    await one.settle()
    assert one.headers == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0191, "20ms"), (1, "1s"), (6.2, "7s"), (59.5, "1m0s"), (360, "6m0s"), (4000, "66m40s")],
)
def test_durations_are_written_as_openai_writes_them(seconds, text):
    assert duration(seconds) == text


_STEPS = st.lists(st.tuples(st.floats(0, 50), st.integers(0, 700), st.integers(-300, 700)), max_size=30)


@given(_STEPS)
async def test_a_bucket_is_what_its_definition_says(steps):
    """Level: full at first, gains at its rate up to the capacity, loses what is drawn; nothing is admitted that it doesn't hold."""
    clock = Clock()
    store = MemoryStore(clock)
    level = 600.0
    for wait, cost, correction in steps:
        clock.now += wait
        level = min(600.0, level + wait * 10)
        taken = await store.take([Draw.taking(TOKENS, cost)])
        assert taken.allowed == (level >= cost) or level == pytest.approx(cost)
        level -= cost if taken.allowed else 0
        assert taken.levels[0].held == pytest.approx(level, abs=1e-6)
        await store.settle([Draw(TOKENS, correction, 0)])
        level = min(600.0, level - correction)
