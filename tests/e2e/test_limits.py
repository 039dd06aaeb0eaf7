"""Limits of keys and tenants, as the stock client meets them."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import openai
import pytest

from server.engines.scripted import Script
from server.keys.secret import hash_of
from server.keys.store import KeyStore
from server.limits.memory import MemoryStore
from tests.e2e.conftest import ALLOW_ONLY, scores
from tests.e2e.test_keys import HELLO, POLICY, bearer, client_of, key

PLAIN = Script(["a", "b", "c"], scores(0.9), scores(0.9))  # three tokens; the prompt of HELLO has 21
CHAT = "/v1/chat/completions"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def limited(serve, tmp_path):
    """A server whose keys have limits: `limited(acme="{requests_per_minute: 2}", tenant=…)`, and its clock."""

    def start(policy=ALLOW_ONLY, script=PLAIN, tenant="{}", **limits):
        path, clock = tmp_path / "keys.yaml", Clock()
        tenants = "".join(f"{name}: {{limits: {tenant}}}, " for name in ("acme", "clinic"))
        text = f"apiVersion: interlock/v1\nkind: Keys\ntenants: {{{tenants}}}\nkeys:\n"
        for name, spec in limits.items():
            digest = hash_of(key(name).split("_")[2]).hex()
            owner = "clinic" if name == "clinic" else "acme"
            text += f"  - {{id: {name}, tenant: {owner}, sha256: {digest}, limits: {spec}}}\n"
        path.write_text(text)
        keys = KeyStore(path, lambda: datetime.now(UTC), MemoryStore(clock))
        return serve(policy, script, service_options={"keys": keys}), clock

    return start


def post(live, name, path=CHAT, **body):
    body = {"model": live.model, "messages": HELLO, **body}
    return live.http.post(path, json=body, headers=bearer(key(name)))


def test_the_stock_client_sees_its_rate_limit_error_and_when_to_come_again(limited):
    live, clock = limited(acme="{requests_per_minute: 2}")
    with client_of(live, key("acme")) as client:
        for remaining in ("1", "0"):
            raw = client.chat.completions.with_raw_response.create(model=live.model, messages=HELLO)
            assert raw.headers["x-ratelimit-limit-requests"] == "2"
            assert raw.headers["x-ratelimit-remaining-requests"] == remaining
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(model=live.model, messages=HELLO)
        assert (error.value.code, error.value.type) == ("rate_limit_exceeded", "requests")
        headers = error.value.response.headers
        assert (headers["retry-after"], headers["retry-after-ms"]) == ("30", "30000")
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert headers["x-ratelimit-reset-requests"] == "1m0s"
        assert live.metric("interlock_shed_total", reason="rate_limit") == 1
        clock.now += 30
        assert client.chat.completions.create(model=live.model, messages=HELLO).choices


def test_keys_do_not_share_what_is_theirs_but_share_what_is_their_tenants(limited):
    live, _ = limited(
        acme="{requests_per_minute: 2}", other="{}", clinic="{}", tenant="{requests_per_minute: 3}"
    )
    assert [post(live, "acme").status_code for _ in range(3)] == [200, 200, 429]
    assert [post(live, "other").status_code for _ in range(2)] == [200, 429]
    assert post(live, "clinic").status_code == 200


def test_many_at_once_get_exactly_what_there_is(limited):
    live, _ = limited(acme="{requests_per_minute: 10}")
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: post(live, "acme").status_code, range(30)))
    assert (statuses.count(200), statuses.count(429)) == (10, 20)


def test_tokens_of_prompt_and_response_count_as_the_usage_says(limited):
    live, _ = limited(acme="{tokens_per_minute: 1000}")
    used = post(live, "acme", n=2).json()["usage"]
    left = 1000 - used["total_tokens"]
    prompt = used["prompt_tokens"]
    for _ in range(2):  # the second time shows that asking for a lot and using little costs little
        reply = post(live, "acme", max_tokens=500)
        assert reply.headers["x-ratelimit-remaining-tokens"] == str(left - prompt - 500)
        left -= reply.json()["usage"]["total_tokens"]
    too_large = post(live, "acme", max_tokens=2000)
    assert too_large.status_code == 429
    assert too_large.headers["x-should-retry"] == "false"
    assert "retry-after" not in too_large.headers
    assert str(prompt + 2000) in too_large.json()["error"]["message"]


def test_a_long_reply_is_paid_for_before_the_next_is_admitted(limited):
    live, clock = limited(acme="{tokens_per_minute: 60}", script=Script(["w"] * 100, scores(), scores()))
    assert post(live, "acme", stream=True).status_code == 200
    refused = post(live, "acme")
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
    clock.now += float(refused.headers["retry-after"]) + 30
    assert post(live, "acme").status_code == 200


def test_a_stream_that_is_left_pays_for_what_was_generated(limited):
    live, _ = limited(
        acme="{tokens_per_minute: 1000}", script=Script(["w"] * 300, scores(), scores(), step_s=0.01)
    )
    with client_of(live, key("acme")) as client:
        stream = iter(
            client.chat.completions.create(model=live.model, messages=HELLO, max_tokens=300, stream=True)
        )
        for _ in range(5):
            next(stream)
        stream.close()
    live.wait_until_free()
    left = int(post(live, "acme", max_tokens=1).headers["x-ratelimit-remaining-tokens"])
    assert 800 < left < 1000 - 2 * 5 - 4


def test_limits_hold_on_every_route_that_costs_and_looking_is_free(limited):
    live, _ = limited(acme="{requests_per_minute: 1}")
    for path in ("/v1/models", "/version", "/tokenizer_info"):
        assert live.http.get(path, headers=bearer(key("acme"))).status_code == 200
    assert post(live, "acme", "/tokenize").status_code == 200
    for path in (
        CHAT,
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/moderations",
        "/tokenize",
        "/nowhere",
    ):
        refused = post(live, "acme", path)
        assert refused.status_code == 429, path
    assert post(live, "acme", "/v1/messages").json()["error"]["type"] == "rate_limit_error"
    assert live.http.post("/ping").status_code == 200


def test_a_body_over_the_limit_is_not_read(limited):
    live, _ = limited(acme="{requests_per_minute: 1}")
    assert post(live, "acme").status_code == 200
    broken = live.http.post(CHAT, content=b"{", headers=bearer(key("acme")))
    assert broken.status_code == 429


def test_a_key_that_is_blocked_often_is_let_in_later(limited):
    live, clock = limited(POLICY, clinic="{blocks_per_hour: 2}", acme="{blocks_per_hour: 2}")
    for _ in range(2):
        assert post(live, "clinic").json()["error"]["code"] == "content_filter"
    refused = post(live, "clinic")
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "blocks")
    assert refused.headers["x-should-retry"] == "false"
    assert "x-ratelimit-remaining-blocks" not in refused.headers
    for _ in range(4):
        assert post(live, "acme").status_code == 200, "the policy does not block this tenant"
    clock.now += 1800
    assert post(live, "clinic").json()["error"]["code"] == "content_filter"


def test_texts_that_were_only_read_are_no_strikes(limited):
    live, _ = limited(POLICY, clinic="{blocks_per_hour: 1}")
    for _ in range(3):
        moderated = live.http.post("/v1/moderations", json={"input": "x"}, headers=bearer(key("clinic")))
        assert moderated.json()["results"][0]["flagged"] is True


def test_a_key_without_limits_has_no_headers_of_them(limited):
    live, _ = limited(acme="{}")
    assert not [name for name in post(live, "acme").headers if name.startswith("x-ratelimit")]
