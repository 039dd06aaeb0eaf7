"""Whatever clients, operators and scores do, in whatever order: nothing leaves that may not, and in the end nothing is held.

Clients come by every surface, streamed or not, wait, read a little, leave; policies and keys are reloaded, right and wrong; scores
block; the server is drained. After each step, what clients have received is held against what the policy that decided it allows.
"""

import asyncio
import contextlib
import itertools
import re
import socket
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from guard.errors import PolicyError
from server.drain import DrainPhase
from server.engines.scripted import Script, ScriptedEngine
from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import prepare
from server.keys.secret import hash_of
from server.keys.store import KeyStore
from server.scheduling.line import Line
from server.tokenizer import ByteTokenizer, ModelTokenizer
from tests.e2e.conftest import make_service, running
from tests.fuzz.clients import PATHS, Client, body_for, texts_of
from tests.integration.conftest import monitors_for
from tests.tiny_models import TINY
from tests.tiny_tokenizer import tiny_tokenizer
from tests.waiting import until

SLOTS, MAX_WAITING = 4, 4
NUM_TOKENS = 12
QUIET, RAISED, HIGH = 0.1, 0.6, 0.9


@dataclass(frozen=True)
class Rules:
    """What a version of the policy says."""

    holdback: int
    threshold: float | None = None  # of a score, in prompt and response
    most_tokens: int | None = None  # a reply of more is blocked

    def text(self, version: int) -> str:
        if self.most_tokens is not None:
            rules = [f"max(response.cosine) > -2 and tokens() > {self.most_tokens}"]
        elif self.threshold is not None:
            rules = [f"max({phase}.harm) > {self.threshold}" for phase in ("prompt", "response")]
        else:
            rules = []
        lines = [
            f"  - {{id: r{index}, when: {when}, then: {{block: {{}}}}, override: {{reason: only a test of the server}}}}"
            for index, when in enumerate(rules)
        ]
        return (
            "apiVersion: interlock/v1\nkind: Policy\n"
            f'metadata: {{name: p, version: "{version}"}}\ndefaults: {{holdback: {self.holdback}, budget: 10s}}\nrules:\n'
            + ("\n".join(lines) or "  []")
        )


class Asked(Client):
    """A request, and what is known of it."""

    def __init__(self, live, endpoint, *, stream, n, key, text, spike=None, in_prompt=False):
        self.endpoint, self.stream = endpoint, stream
        self.n = n if endpoint in {"chat", "completions"} else 1
        self.spike = spike  # index and score of a token of the reply; None: there is none
        self.in_prompt = in_prompt
        self.key = key
        self.gate = threading.Event()
        body = body_for(endpoint, live.model, text, stream=stream, n=n)
        super().__init__(live.url, PATHS[endpoint], body, {"authorization": f"Bearer {key}"})

    @property
    def version(self) -> int:
        """Of the policy that decides it."""
        return int(re.fullmatch(r"p@(\d+)#\w+", self.reply.headers["x-interlock-policy"])[1])


class Machine(RuleBasedStateMachine):
    """Of a server with a line of few places, keys, and a decision log. Subclasses say what the engine is."""

    asked = Bundle("asked")
    endpoints = st.sampled_from(sorted(PATHS))

    folder = None  # set by the test
    numbers = itertools.count()

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.open = []
        self.finished = []
        self.keys = {"a", "b"}
        self.is_draining = False
        self.versions = {}

    # --- what subclasses say ------------------------------------------------------------------------------------------

    def engine(self):
        raise NotImplementedError

    def policy(self, holdback, strict):
        raise NotImplementedError

    def blocked_at(self, client, rules):
        """The index of the token at which a reply is blocked; -1: on its prompt; None: it is not."""
        raise NotImplementedError

    def allowed(self, client, tokens):
        """The text of the first tokens of a reply; None: of all."""
        raise NotImplementedError

    # --- the server ---------------------------------------------------------------------------------------------------

    @initialize()
    def start(self):
        folder = self.folder / str(next(self.numbers))
        folder.mkdir()
        self.key_file = folder / "keys.yaml"
        self.write_keys()
        engine, tokenizer = self.engine()
        path = folder / "audit.jsonl"
        self.write_policy = lambda text: path.with_suffix(".yaml").write_text(text)
        self.versions[1] = self.policy(0, strict=False)
        service = make_service(
            engine,
            self.versions[1].text(1),
            path,
            tokenizer,
            keys=KeyStore(self.key_file, lambda: datetime.now(UTC)),
            line=Line(slots=SLOTS, max_waiting=MAX_WAITING),
        )
        self.live = self.stack.enter_context(running(service, path, expose_metrics=True))

    def write_keys(self):
        lines = [
            f"  - {{id: {name}, tenant: acme, sha256: {hash_of(hash_of(name).hex()).hex()}, scopes: [{scope}]}}\n"
            for name, scope in [*((name, "infer") for name in sorted(self.keys)), ("look", "debug")]
        ]
        self.key_file.write_text(
            "apiVersion: interlock/v1\nkind: Keys\ntenants: {acme: {}}\nkeys:\n" + "".join(lines)
        )

    @staticmethod
    def key(name):
        return f"ilk_{name}_{hash_of(name).hex()}"

    # --- what clients do ----------------------------------------------------------------------------------------------

    @rule(
        target=asked,
        endpoint=endpoints,
        stream=st.booleans(),
        n=st.integers(1, 4),
        name=st.sampled_from(["a", "a", "b"]),
        spike=st.none() | st.tuples(st.integers(0, NUM_TOKENS - 1), st.sampled_from([RAISED, HIGH])),
        in_prompt=st.sampled_from([False, False, False, True]),
    )
    def ask(self, endpoint, stream, n, name, spike, in_prompt):  # noqa: PLR0917  # called by name
        client = self.new_client(
            endpoint, stream=stream, n=n, key=self.key(name), spike=spike, in_prompt=in_prompt
        )
        client.had_key, client.came_late = name in self.keys, self.is_draining
        client.name = name
        self.open.append(client)
        return client

    def new_client(self, endpoint, **options):
        return Asked(self.live, endpoint, text="hello", **options)

    @rule(client=asked)
    def let_it_be_answered(self, client):
        client.gate.set()

    @rule(client=asked, num_lines=st.integers(1, 12))
    def read_a_little(self, client, num_lines):
        if client in self.open and client.gate.is_set() and client.has_answer:
            client.read(num_lines)

    @rule(client=consumes(asked))
    def leave(self, client):
        if client in self.open:
            self.open.remove(client)
            client.leave()

    @rule(endpoint=endpoints, share=st.floats(0, 0.99))
    def leave_with_half_a_request(self, endpoint, share):
        where = httpx.URL(self.live.url)
        sent = (
            f"POST {PATHS[endpoint]} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.key('a')}\r\n"
            f'content-type: application/json\r\ncontent-length: 500\r\n\r\n{{"model": "x"'
        ).encode()
        with socket.create_connection((where.host, where.port)) as half:
            half.sendall(sent[: int(len(sent) * share)])

    @rule(client=consumes(asked))
    def read_to_the_end(self, client):
        if client in self.open:
            for other in self.open[: self.open.index(client) + 1]:
                other.gate.set()  # it may stand in line behind them
            self.finish(client)

    def finish(self, client):
        client.read()
        self.open.remove(client)
        client.leave()
        self.check_end(client)

    # --- what operators do --------------------------------------------------------------------------------------------

    @rule(holdback=st.sampled_from([0, 1, 3]), strict=st.sampled_from([None, False, True]))
    def reload(self, holdback, strict):
        version = len(self.versions) + 1
        self.versions[version] = self.policy(holdback, strict)
        self.write_policy(self.versions[version].text(version))
        # all rules may go: the operator says so
        assert self.live.reload(allow_shrink=True).version == str(version)

    @rule()
    def reload_what_is_wrong(self):
        before = self.live.service.policies.current
        self.write_policy("apiVersion: interlock/v1\nkind: Policy\nrules: [{id: x, when: nothing(1)}]\n")
        with pytest.raises(PolicyError):
            self.live.reload()
        assert self.live.service.policies.current is before
        self.write_policy(self.versions[len(self.versions)].text(len(self.versions)))

    @rule(names=st.sets(st.sampled_from(["a", "b"]), min_size=1))
    def reload_keys(self, names):
        self.keys = names
        self.write_keys()
        asyncio.run_coroutine_threadsafe(self.live.service.reload_keys(), self.live.loop).result(60)

    @rule()
    def scrape(self):
        headers = {"authorization": f"Bearer {self.key('look')}"}
        told = self.live.http.get("/metrics", headers=headers)
        assert (told.status_code, "interlock_places_taken" in told.text) == (200, True)

    @precondition(lambda self: self.open and not self.is_draining)
    @rule()
    def drain(self):
        self.live.service.drain.begin(unnoticed=True)
        self.live.service.drain.phase = DrainPhase.REFUSING  # what the process does next
        self.is_draining = True

    # --- what holds ---------------------------------------------------------------------------------------------------

    @invariant()
    def what_was_sent_was_allowed(self):
        for client in self.open:
            if client.texts:
                self.check_text(client)

    @invariant()
    def nothing_leaks_and_the_line_keeps_its_bounds(self):
        if hasattr(self, "live"):
            assert self.live.metric("interlock_leaks_prevented_total") == 0
            assert self.live.service.line.waiting <= MAX_WAITING
            if not self.open:
                self.nothing_is_held()

    def nothing_is_held(self):
        line = self.live.service.line
        until(lambda: (line.running, line.waiting) == (0, 0))
        self.live.wait_until_free()

    def check_text(self, client):
        """What it has is the beginning of what it may have."""
        rules = self.versions[client.version]
        blocked_at = self.blocked_at(client, rules)
        if blocked_at is None:
            allowed = self.allowed(client, None)
        elif client.stream or client.endpoint == "completions":
            allowed = self.allowed(client, max(0, blocked_at - rules.holdback))
        else:
            allowed = ""
        for text in client.texts.values():
            assert allowed.startswith(text), (text, allowed)

    def check_end(self, client):
        status = client.reply.status
        if status == 401:
            assert not client.had_key or client.name not in self.keys
            return
        assert client.had_key
        if status == 503:
            assert b'"overloaded"' in client.raw or (self.is_draining and b'"draining"' in client.raw)
            return
        assert not client.came_late, "it came after the drain had begun"
        self.check_text(client)
        rules = self.versions[client.version]
        blocked_at = self.blocked_at(client, rules)
        assert status == (400 if blocked_at == -1 else 200), client.raw
        if blocked_at is None:
            assert set(client.texts.values()) == {self.allowed(client, None)}
        else:
            assert b"content_filter" in client.raw or b"refusal" in client.raw
        decision_id = client.reply.headers["x-interlock-decision-id"]
        self.finished.append((decision_id, client.n, blocked_at, rules.holdback))

    def teardown(self):
        try:
            if hasattr(self, "live"):
                self.end()
        finally:
            for client in self.open:
                client.gate.set()
                client.leave()
            self.stack.close()

    def end(self):
        for client in list(self.open):
            client.gate.set()
        for client in list(self.open):
            self.finish(client)
        self.nothing_is_held()
        records = self.live.records()
        counts = Counter((record["decision_id"], record["choice"]) for record in records)
        assert set(counts.values()) <= {1}, "a choice was recorded twice"
        by_id = Counter(record["decision_id"] for record in records)
        blocked = {record["decision_id"] for record in records if record["action"] == "block"}
        delivered = {record["decision_id"]: record["delivered_tokens"] for record in records}
        for decision_id, n, blocked_at, holdback in self.finished:
            # of a request that is refused on its prompt, choices that had not begun never did
            assert by_id[decision_id] == n or (blocked_at == -1 and 1 <= by_id[decision_id] <= n)
            assert (decision_id in blocked) == (blocked_at is not None)
            if blocked_at is not None:
                assert delivered[decision_id] <= max(0, blocked_at - holdback)
        assert self.total("interlock_decisions_total") == len(records)
        assert self.total("interlock_audit_records_total") == len(records)
        outcomes = Counter(record["outcome"] for record in records)
        for outcome in ("allowed", "blocked", "error"):
            assert self.total("interlock_requests_total", outcome=outcome) == outcomes[outcome]

    def total(self, name, **labels):
        """Of a counter, over all its series that have these labels."""
        samples = (s for metric in self.live.service.metrics.registry.collect() for s in metric.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


class Scripted(Machine):
    """Replies and scores are played."""

    def engine(self):
        self.plans = {}

        def script_for(request):
            found = re.search(r"plan(\d+)\.", bytes(request.prompt_ids).decode(errors="replace"))
            client = self.plans[int(found[1])]
            harm = [QUIET] * NUM_TOKENS
            if client.spike is not None:
                harm[client.spike[0]] = client.spike[1]
            prompt = [HIGH if client.in_prompt else QUIET] * 100
            return Script(
                [f"<{index}>" for index in range(NUM_TOKENS)],
                {"harm": prompt},
                {"harm": harm},
                step_s=0.001,
                hold=client.gate,
            )

        return ScriptedEngine(script_for, ("harm",)), ByteTokenizer()

    def new_client(self, endpoint, **options):
        number = next(self.numbers)
        waiting = _Gate()
        self.plans[number] = waiting
        waiting.spike, waiting.in_prompt = options["spike"], options["in_prompt"]
        client = Asked(self.live, endpoint, text=f"plan{number}.", **options)
        client.gate = waiting.gate
        return client

    def policy(self, holdback, strict):
        thresholds = {None: None, False: 0.8, True: 0.5}
        return Rules(holdback, threshold=thresholds[strict])

    def blocked_at(self, client, rules):
        if rules.threshold is None:
            return None
        if client.in_prompt:
            return -1
        return client.spike[0] if client.spike is not None and client.spike[1] > rules.threshold else None

    def allowed(self, client, tokens):
        return "".join(f"<{index}>" for index in range(NUM_TOKENS)[:tokens])


class Tiny(Machine):
    """The in-process engine on a tiny random model, which answers the same text each time. Its replies are blocked for their length."""

    loaded = None  # set by the test
    replies = None  # its texts, by endpoint

    def engine(self):
        sizes = EngineSettings(max_batch=SLOTS, max_context=64, prefill_chunk=8, prefix_cache_tokens=64)
        return TransformersEngine(self.loaded, monitors_for(self.loaded), sizes), ModelTokenizer(
            self.loaded.tokenizer
        )

    def policy(self, holdback, strict):
        return Rules(holdback, most_tokens={None: None, False: 9, True: 3}[strict])

    def blocked_at(self, client, rules):
        return rules.most_tokens

    def allowed(self, client, tokens):
        return self.replies[client.endpoint]  # how many of its tokens left is in the decision log


class _Gate:
    """What the engine must know of a client before its request is sent."""

    def __init__(self):
        self.gate = threading.Event()


DETERMINISTIC = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_whatever_happens_to_a_server_that_plays_scripts(tmp_path):
    Scripted.folder = tmp_path
    run_state_machine_as_test(
        Scripted, settings=settings(DETERMINISTIC, max_examples=40, stateful_step_count=30)
    )


def replies(loaded, path):
    """What the model answers where nobody disturbs it."""
    engine = TransformersEngine(loaded, monitors_for(loaded), EngineSettings(max_batch=1, max_context=64))
    nothing = Rules(holdback=0).text(1)
    with running(make_service(engine, nothing, path, ModelTokenizer(loaded.tokenizer)), path) as live:
        bodies = {name: body_for(name, live.model, "hello", stream=False, n=1) for name in PATHS}
        return {
            name: texts_of(live.http.post(PATHS[name], json=body).json())[0] for name, body in bodies.items()
        }


def test_whatever_happens_to_a_server_with_a_model(tmp_path):
    Tiny.folder = tmp_path
    Tiny.loaded = prepare(TINY["llama"](), tiny_tokenizer(), model_id="tiny")
    Tiny.replies = replies(Tiny.loaded, tmp_path / "first.jsonl")
    run_state_machine_as_test(Tiny, settings=settings(DETERMINISTIC, max_examples=8, stateful_step_count=25))
