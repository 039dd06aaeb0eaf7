"""What only processes can show: the server killed or stopped in the middle of a stream, its client likewise, and a real disk limit.

The demo is served as anybody would, in a process of its own. The same prompt, drawn greedily, has the same reply, so that
each token that is lost or made up shows.
"""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from server.auditing.verify import verify
from tests.waiting import until

POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: allow, version: "1"}
rules:
  - {id: note, when: max(response.harm) > 0.999, then: {log: {}}}
"""
BODY = {
    "model": "interlock-demo",
    "messages": [{"role": "user", "content": "How do I kill a process?"}],
    "temperature": 0,
    "max_tokens": 150,
    "ignore_eos": True,
}
RUNNING = 'interlock_requests_running{model="interlock-demo"}'
CLIENT = """
import json, sys, httpx
with httpx.stream("POST", sys.argv[1], json=json.loads(sys.argv[2]), timeout=120) as reply:
    for line in reply.iter_lines():
        print(line, flush=True)
"""


@dataclass
class Server:
    """`interlock serve`, and ways to talk to it."""

    process: subprocess.Popen
    url: str
    admin: str
    log: Path

    @property
    def chat_url(self):
        return f"{self.url}/v1/chat/completions"

    def ask(self, **body):
        return httpx.post(self.chat_url, json={**BODY, **body}, timeout=120)

    def stream(self, **body):
        return httpx.stream("POST", self.chat_url, json={**BODY, "stream": True, **body}, timeout=120)

    def signal(self, number):
        self.process.send_signal(number)

    def metric(self, name):
        shown = httpx.get(f"{self.admin}/metrics", timeout=60).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", shown, re.MULTILINE)
        assert found, f"{name} is not among {shown}"
        return float(found[1])

    def records(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def until_recorded(self, count):
        until(lambda: self.log.exists() and len(self.records()) >= count)
        assert len(self.records()) == count

    def until_idle(self):
        until(lambda: self.metric(RUNNING) == 0)
        until(lambda: self.metric("interlock_audit_queue_length") == 0)


@contextlib.contextmanager
def started(folder):
    policy = folder / "policy.yaml"
    policy.write_text(POLICY)
    log = folder / "log" / "decisions.jsonl"
    options = ["--port", "0", "--admin-port", "0", "--policy", policy, "--audit", log]
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", *map(str, options)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "INTERLOCK__STEP_TIMEOUT_S": "5",
        "INTERLOCK__STREAM_STALLED_S": "5",
    }
    errors = folder / "stderr"
    with (
        errors.open("w") as said,
        subprocess.Popen(command, stderr=said, env=environment) as process,  # noqa: S603
    ):
        try:
            banner = r"API\s+(\S+)/v1\s+metrics\s+(\S+)/metrics"
            until(lambda: re.search(banner, errors.read_text()) or process.poll() is not None, 120)
            assert process.poll() is None, errors.read_text()
            urls = re.search(banner, errors.read_text()).groups()
            server = Server(process, *urls, log)
            until(lambda: _is_ready(server), 120)
            yield server
        finally:
            process.kill()


def _is_ready(server):
    assert server.process.poll() is None
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with started(tmp_path_factory.mktemp("server")) as server:
        yield server
        server.until_idle()
        assert verify([server.log]).broken is None
        assert server.metric("interlock_leaks_prevented_total") == 0


def text_of(lines, index=0):
    """What the events say of one choice, and whether the stream was ended as it should be."""
    text, ended = "", False
    for line in lines:
        if line.startswith("data: {"):
            choices = json.loads(line.removeprefix("data: "))["choices"]
            text += "".join(c["delta"].get("content") or "" for c in choices if c["index"] == index)
        ended = ended or line == "data: [DONE]"
    return text, ended


def whole(server, **body):
    return server.ask(**body).json()["choices"][0]["message"]["content"]


def take(lines, count):
    """The next events of a stream."""
    taken = []
    while len(taken) < count:
        line = next(lines)
        if line.startswith("data: "):
            taken.append(line)
    return taken


def test_a_server_that_is_killed_in_the_middle_of_a_stream_leaves_a_whole_log_and_goes_on(tmp_path):
    """Twice over: what the client has is the beginning of the reply, and what is recorded stays."""
    for _ in range(2):
        with started(tmp_path) as server:
            before = verify([server.log]).num_records if server.log.exists() else 0
            reply = whole(server)
            server.until_recorded(before + 1)
            got = []
            with server.stream() as stream:
                lines = stream.iter_lines()
                got += take(lines, 8)
                server.signal(signal.SIGKILL)
                with pytest.raises(httpx.TransportError):  # it can't be taken for an end
                    got += list(lines)
            text, ended = text_of(got)
            assert not ended
            assert text
            assert reply.startswith(text)
            assert len(text) < len(reply)
        report = verify([server.log])
        assert (report.broken, report.num_records) == (None, before + 1)


def test_a_server_that_is_stopped_for_a_while_loses_and_makes_up_nothing(server):
    """Its streams pause for longer than a step may take and a client may stall, and neither is taken for that afterwards."""
    server.until_idle()
    before = len(server.records()) if server.log.exists() else 0
    reply = whole(server, max_tokens=400)
    with server.stream(n=4, max_tokens=400) as stream:
        lines = stream.iter_lines()
        got = take(lines, 8)  # all four have begun
        server.signal(signal.SIGSTOP)
        time.sleep(8)
        server.signal(signal.SIGCONT)
        got += list(lines)
    assert [text_of(got, index) for index in range(4)] == [(reply, True)] * 4
    server.until_recorded(before + 5)
    records = server.records()[-4:]
    assert {record["outcome"] for record in records} == {"allowed"}
    assert {record["delivered_tokens"] for record in records} == {400}


@contextlib.contextmanager
def client_of(server, **body):
    arguments = [server.chat_url, json.dumps({**BODY, "stream": True, **body})]
    command = [sys.executable, "-c", CLIENT, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:  # noqa: S603
        try:
            yield client
        finally:
            client.kill()


def test_a_client_that_is_stopped_for_a_while_gets_every_token_and_holds_up_nobody(server):
    reply = whole(server)
    with client_of(server) as client:
        got = [client.stdout.readline().rstrip("\n") for _ in range(8)]
        client.send_signal(signal.SIGSTOP)
        for _ in range(2):
            assert whole(server) == reply  # others are served meanwhile
        client.send_signal(signal.SIGCONT)
        got += [line.rstrip("\n") for line in client.stdout]
        assert client.wait(60) == 0
    assert text_of(got) == (reply, True)


def test_a_client_that_is_killed_in_the_middle_of_a_stream_is_recorded_as_gone(server):
    server.until_idle()
    before = len(server.records()) if server.log.exists() else 0
    with client_of(server, n=4, max_tokens=400) as client:
        for _ in range(8):
            client.stdout.readline()
        client.kill()
        client.wait(60)
    server.until_recorded(before + 4)
    records = server.records()[-4:]
    assert {(record["outcome"], record["cut"]) for record in records} == {("cancelled", "client_gone")}
    for record in records:
        assert record["delivered_tokens"] <= record["usage"]["completion_tokens"] < 400
        assert record["scores"]["response"]["harm"]["n"] == record["usage"]["completion_tokens"]
    server.until_idle()


def test_a_disk_without_room_refuses_requests_and_loses_no_record(server):
    """The kernel refuses to let the log's file grow: what runs ends, what is new is refused, and all is written in the end."""
    reply = whole(server)
    server.until_idle()
    before = len(server.records())
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    room = server.log.stat().st_size + 100  # for a part of a record
    try:
        with server.stream() as stream:
            lines = stream.iter_lines()
            first = take(lines, 4)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (room, limits[1]))
            assert text_of([*first, *lines]) == (reply, True)
        until(lambda: server.metric("interlock_audit_writable") == 0)
        refused = server.ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "interlock_unavailable")
        assert httpx.get(f"{server.admin}/readyz", timeout=60).status_code == 503
        assert len(server.records()) == before  # nothing half-written is left
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
    until(lambda: server.metric("interlock_audit_writable") == 1)
    assert whole(server) == reply
    server.until_recorded(before + 2)
    assert verify([server.log]).broken is None
    assert server.metric("interlock_audit_dropped_total") == 0
