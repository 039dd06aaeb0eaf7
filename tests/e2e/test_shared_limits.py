"""Limits that replicas share through a real Redis; and what holds while it is away."""

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import time
from datetime import UTC, datetime

import anyio
import pytest
from pydantic import SecretStr

from server.assemble import limit_store
from server.config import ServerConfig
from server.engines.scripted import Script
from server.keys.secret import hash_of
from server.keys.store import KeyStore
from server.limits.memory import MemoryStore
from server.limits.shared import SharedStore
from server.limits.types import Draw, Limit, LimitsUnavailableError, Unit
from tests.e2e.conftest import ALLOW_ONLY, scores
from tests.e2e.test_keys import HELLO, POLICY, bearer, key
from tests.waiting import until

redis_store = pytest.importorskip("server.limits.redis", reason="needs redis-py")
BINARY = shutil.which("redis-server")
pytestmark = pytest.mark.skipif(BINARY is None, reason="needs redis-server (Debian's package of that name)")

PLAIN = Script(["a", "b", "c"], scores(0.9), scores(0.9))
SLOW = Limit("{acme}:key:a:tokens", Unit.TOKENS, 600, 1e9)  # gains nothing while a test runs
OTHER = Limit("{acme}:tenant:tokens", Unit.TOKENS, 1000, 1e9)


class RealRedis:
    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder = folder
        self.url = SecretStr(f"redis://:sesame@127.0.0.1:{self.port}/0")
        self.start()

    def start(self):
        options = ["--bind", "127.0.0.1", "--requirepass", "sesame", "--save", "", "--dir", str(self._folder)]
        self.process = subprocess.Popen(  # noqa: S603  # ours
            [BINARY, "--port", str(self.port), *options], stdout=subprocess.DEVNULL
        )
        until(self._answers)

    def _answers(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 30):
            return True
        return False

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(60)


@pytest.fixture
def redis(tmp_path):
    server = RealRedis(tmp_path)
    yield server
    server.stop()


@pytest.fixture
async def stores(redis):
    opened = [redis_store.RedisStore(redis.url, timeout_s=5) for _ in range(2)]
    yield opened
    for store in opened:
        await store.close()


@pytest.mark.anyio
async def test_buckets_in_redis_are_the_same_as_in_memory(stores):
    memory = MemoryStore(lambda: 0.0)
    steps = [(500, 1), (200, 0), (100, 1), (0, 0), (-50, 1), (700, 0), (45, 0), (9, 1), (-5000, 1), (600, 0)]
    for amount, settles in steps:
        draws = [Draw.taking(SLOW, amount), Draw.taking(OTHER, amount)]
        if settles:
            for store in (memory, stores[0]):
                await store.settle(draws)
            continue
        told = [await store.take(draws) for store in (memory, stores[1])]
        assert told[0].allowed == told[1].allowed, amount
        held = [[level.held for level in taken.levels] for taken in told]
        assert held[1] == pytest.approx(held[0], abs=0.01)


@pytest.mark.anyio
async def test_a_bucket_fills_by_redis_own_clock_and_is_forgotten_when_full(stores):
    fast = Limit("{a}:fast", Unit.REQUESTS, 10, 3.0)
    for store in stores:
        assert (await store.take([Draw.taking(fast, 5)])).allowed
    short = await stores[0].take([Draw.taking(fast, 5)])
    assert not short.allowed
    await asyncio.sleep(short.levels[0].wait_s + 0.05)
    assert (await stores[1].take([Draw.taking(fast, 5)])).allowed
    assert 0 < await stores[0]._redis.pttl("interlock:limits:{a}:fast") <= 6100
    with anyio.fail_after(60):
        while await stores[0]._redis.keys("*"):  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.1)


@pytest.mark.anyio
async def test_many_at_once_on_several_connections_get_exactly_what_there_is(stores):
    ten = Limit("{a}:ten", Unit.REQUESTS, 10, 1e9)
    taken = await asyncio.gather(*(stores[i % 2].take([Draw.taking(ten, 1)]) for i in range(60)))
    assert sum(one.allowed for one in taken) == 10


@pytest.fixture
def replica(serve, tmp_path, redis):
    """Servers of their own that share Redis."""

    def start(limits, policy=ALLOW_ONLY, on_error="closed"):
        path = tmp_path / "keys.yaml"
        text = "apiVersion: interlock/v1\nkind: Keys\ntenants: {acme: {}, clinic: {}}\nkeys:\n"
        for name in ("acme", "clinic"):
            digest = hash_of(key(name).split("_")[2]).hex()
            text += f"  - {{id: {name}, tenant: {name}, sha256: {digest}, limits: {limits}}}\n"
        path.write_text(text)
        shared = redis_store.RedisStore(redis.url, timeout_s=3)
        store = SharedStore(shared, MemoryStore(time.monotonic), on_error=on_error, clock=time.monotonic)
        keys = KeyStore(path, lambda: datetime.now(UTC), store)
        live = serve(policy, PLAIN, service_options={"keys": keys})
        failures = live.service.metrics.failures
        store.on_failed = lambda disposition: failures.labels("limits", disposition).inc()
        return live

    return start


def post(live, name="acme"):
    body = {"model": live.model, "messages": HELLO}
    return live.http.post("/v1/chat/completions", json=body, headers=bearer(key(name)))


def failures(live, disposition):
    return live.metric("interlock_failures_total", component="limits", disposition=disposition)


def test_two_replicas_share_a_keys_requests_and_strikes(replica):
    one, other = (replica("{requests_per_minute: 3, tokens_per_minute: 500}") for _ in range(2))
    assert [post(live).status_code for live in (one, other, one, other)] == [200, 200, 200, 429]
    assert [post(live, "clinic").status_code for live in (one, other)] == [200, 200]
    assert post(one, "clinic").headers["x-ratelimit-remaining-requests"] == "0"


def test_two_replicas_share_strikes(replica):
    one, other = (replica("{blocks_per_hour: 2}", POLICY) for _ in range(2))
    assert [post(live, "clinic").status_code for live in (one, other, one, other)] == [400, 400, 429, 429]


def test_closed_refuses_while_redis_is_away_and_serves_when_it_is_back(replica, redis):
    live = replica("{requests_per_minute: 100}")
    assert post(live).status_code == 200
    redis.stop()
    refused = post(live)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "interlock_unavailable")
    assert "sesame" not in refused.text
    assert failures(live, "closed") >= 1
    assert failures(live, "open") == 0
    redis.start()
    until(lambda: post(live).status_code == 200)


def test_open_counts_by_itself_while_redis_is_away(replica, redis):
    live = replica("{requests_per_minute: 2}", on_error="open")
    redis.stop()
    assert [post(live).status_code for _ in range(3)] == [200, 200, 429], "open is not without limits"
    assert failures(live, "open") >= 3
    assert failures(live, "closed") == 0


def test_a_redis_that_hangs_is_given_up_soon_and_then_left_alone_for_a_while(replica, redis):
    live = replica("{requests_per_minute: 100}", on_error="open")
    assert post(live).status_code == 200
    redis.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(5):
        assert post(live).status_code == 200
    assert time.monotonic() - began < 30  # of a Redis that would hang for ever
    assert failures(live, "open") >= 5


def test_a_key_without_limits_needs_no_redis(replica, redis):
    live = replica("{}")
    redis.stop()
    assert post(live).status_code == 200


@pytest.mark.anyio
async def test_a_wrong_password_is_a_failure_that_does_not_show_it(redis):
    store = redis_store.RedisStore(SecretStr(f"redis://:open-it@127.0.0.1:{redis.port}/0"), timeout_s=30)
    with pytest.raises(LimitsUnavailableError) as error:
        await store.take([Draw.taking(SLOW, 1)])
    assert "open-it" not in str(error.value)
    await store.close()


def test_the_settings_choose_the_store(tmp_path):
    keys = tmp_path / "keys.yaml"
    assert isinstance(limit_store(ServerConfig()), MemoryStore)
    assert isinstance(limit_store(ServerConfig(keys=keys, limits_redis="redis://x")), SharedStore)
    with pytest.raises(ValueError, match="--keys"):
        limit_store(ServerConfig(limits_redis="redis://x"))
    for address in ("http://:open-it@x", "redis://:open-it@x:port"):
        with pytest.raises(ValueError, match="redis://") as error:
            limit_store(ServerConfig(keys=keys, limits_redis=address))
        assert "open-it" not in str(error.value)
