"""Streams through real nginx and HAProxy, by the files in deploy/, with the buffering that both have by default."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from server.api import reply
from server.engines.scripted import Script
from tests.clients.conftest import PATIENCE_S
from tests.e2e.conftest import scores
from tests.e2e.test_openai_surface import BLOCK_RESPONSE, PLAIN, WORDS
from tests.waiting import until

DEPLOY = Path(__file__).parents[2] / "deploy"
PATH = "/v1/chat/completions"
BODY = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {site}
}}
"""
BARE_SITE = "server { listen 80; location / { proxy_pass http://127.0.0.1:8000; } }"


@dataclass(frozen=True)
class Proxy:
    """A proxy by its configuration, and where that says to listen."""

    program: str
    site: str
    listen: str

    def with_(self, old: str, new: str) -> "Proxy":
        assert old in self.site, f"{self.program} no longer has {old}"
        return replace(self, site=self.site.replace(old, new))

    def options(self, folder, port, upstream):
        at = self.with_(f"{self.listen}80", f"{self.listen.rstrip(':')}127.0.0.1:{port}")
        site = at.with_("127.0.0.1:8000", upstream).site
        path = folder / f"{self.program}.conf"
        if self.program == "nginx":
            path.write_text(NGINX.format(folder=folder, site=site))
            return ["-p", str(folder), "-c", str(path)]
        path.write_text(site)
        return ["-db", "-f", str(path)]


BARE_NGINX = Proxy("nginx", BARE_SITE, "listen ")
PROXIES = {
    "nginx": Proxy("nginx", (DEPLOY / "nginx/interlock.conf").read_text(), "listen "),
    "bare-nginx": BARE_NGINX,
    "haproxy": Proxy("haproxy", (DEPLOY / "haproxy/interlock.cfg").read_text(), "bind :"),
}
in_front = pytest.mark.parametrize("proxy", PROXIES.values(), ids=PROXIES)


@pytest.fixture
def stand_before(tmp_path):
    """Start a proxy before a server; the result is a client that speaks to it."""
    with contextlib.ExitStack() as stack:

        def start(proxy, live):
            binary = shutil.which(proxy.program, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
            if binary is None:
                pytest.skip(f"needs {proxy.program} (Debian's nginx-light and haproxy)")
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            folder = tmp_path / f"proxy-{port}"
            folder.mkdir()
            options = proxy.options(folder, port, live.url.removeprefix("http://"))
            process = subprocess.Popen([binary, *options])  # noqa: S603  # ours
            stack.callback(process.wait)
            stack.callback(process.kill)
            client = stack.enter_context(
                httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)
            )
            until(lambda: answers(client, process))
            return client

        yield start


def answers(client, process):
    assert process.poll() is None, "the proxy did not start"
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def gate():
    event = threading.Event()
    yield event
    event.set()


@in_front
def test_the_first_token_arrives_before_the_last_is_made(serve, stand_before, proxy, gate):
    """The engine holds the second token until the client has the first: a proxy that gathers, hangs."""
    live = serve(script=replace(PLAIN, hold=gate, hold_from=1))
    client = stand_before(proxy, live)
    with client.stream("POST", PATH, json={**BODY, "stream": True}) as stream:
        lines = stream.iter_lines()
        assert next(text for text in map(text_of, lines) if text) == WORDS[0]
        assert live.service.engine.load().running == 1
        gate.set()
        assert "".join(map(text_of, lines)) == "".join(WORDS[1:])


def test_without_the_header_nginx_would_hold_the_stream_back(serve, stand_before, gate):
    """So it is the header that does it, and a site that ignores it breaks streams."""
    ignoring = BARE_NGINX.with_("proxy_pass", "proxy_ignore_headers X-Accel-Buffering; proxy_pass")
    client = stand_before(ignoring, serve(script=replace(PLAIN, hold=gate, hold_from=1)))
    nothing_comes = pytest.raises(httpx.ReadTimeout)
    with nothing_comes, client.stream("POST", PATH, json={**BODY, "stream": True}, timeout=2) as stream:
        next(stream.iter_raw())


@in_front
def test_a_blocked_stream_arrives_whole(serve, stand_before, proxy):
    live = serve(BLOCK_RESPONSE, Script(WORDS, scores(), scores(harm={4: 0.9})))
    direct = live.http.post(PATH, json={**BODY, "stream": True})
    through = stand_before(proxy, live).post(PATH, json={**BODY, "stream": True})
    assert shape(through.text) == shape(direct.text)
    assert through.text.endswith("data: [DONE]\n\n")
    assert '"content_filter"' in through.text
    assert "".join(map(text_of, through.text.splitlines())) == "Once upon a time"
    assert through.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert through.headers["x-interlock-policy"] == direct.headers["x-interlock-policy"]
    assert "content-encoding" not in through.headers


@in_front
def test_a_long_stream_arrives_whole(serve, stand_before, proxy):
    """More than a proxy's buffers and the sockets' hold."""
    words = [f"{index} {'word' * 50} " for index in range(2000)]
    live = serve(script=Script(words, scores(), scores()))
    through = stand_before(proxy, live).post(PATH, json={**BODY, "stream": True})
    assert "".join(map(text_of, through.text.splitlines())) == "".join(words)
    assert through.text.endswith("data: [DONE]\n\n")


@in_front
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_is_noticed_through_the_proxy(serve, stand_before, proxy, gate, stream):
    """It leaves while the engine holds; nothing is sent in which the proxy could notice."""
    live = serve(script=replace(PLAIN, hold=gate, hold_from=1 if stream else 0))
    client = stand_before(proxy, live)
    if stream:
        with client.stream("POST", PATH, json={**BODY, "stream": True}) as begun:
            next(begun.iter_raw())
    else:
        with pytest.raises(httpx.ReadTimeout):
            client.post(PATH, json=BODY, timeout=5)
    until(lambda: live.service.engine.load().running == 0)
    assert not gate.is_set()
    until(lambda: live.metric("interlock_client_disconnects_total") == 1)


IDLE_TIMEOUTS = {
    "nginx": ("proxy_read_timeout 600s", "proxy_read_timeout 3s"),
    "haproxy": ("timeout server 600s", "timeout server 3s"),
}


@pytest.mark.parametrize("name", IDLE_TIMEOUTS)
@pytest.mark.parametrize("keeps_alive", [True, False], ids=["kept-alive", "silent"])
def test_comments_keep_an_idle_stream_open(serve, stand_before, monkeypatch, name, keeps_alive):
    """The model says nothing for twice as long as the proxy waits for a byte. Without comments the stream is cut."""
    monkeypatch.setattr(reply, "_KEEP_ALIVE_S", 0.1 if keeps_alive else 1000.0)
    gate = threading.Event()
    live = serve(script=replace(PLAIN, hold=gate, hold_from=1))
    client = stand_before(PROXIES[name].with_(*IDLE_TIMEOUTS[name]), live)
    received = ""
    cut = contextlib.suppress(httpx.RemoteProtocolError)
    with cut, client.stream("POST", PATH, json={**BODY, "stream": True}) as stream:
        for text in stream.iter_text():
            received += text
            if received.count(": keep-alive") >= 60:  # a tenth of a second each, at least
                gate.set()
    assert received.endswith("data: [DONE]\n\n") == keeps_alive
    assert (": keep-alive\n\n" in received) == keeps_alive
    gate.set()


@in_front
def test_refusals_come_as_they_are(serve, stand_before, proxy):
    """Proxies have error pages of their own; ours must come through."""
    live = serve(BLOCK_RESPONSE, Script(WORDS, {}, {}), service_options={"max_body_bytes": 2000})
    client = stand_before(proxy, live)
    unavailable = client.post(PATH, json=BODY)
    assert (unavailable.status_code, unavailable.headers["retry-after"]) == (503, "10")
    assert unavailable.json()["error"]["code"] == "interlock_unavailable"
    too_large = client.post(PATH, json={**BODY, "user": "x" * 4000})
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "body_too_large")


def text_of(line):
    """What a line of a stream adds to the text."""
    if not line.startswith("data: {"):
        return ""
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return choices[0]["delta"].get("content") or ""


def shape(stream):
    """A stream without what differs from request to request."""
    chunks = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")]
    return [json.loads(chunk)["choices"] for chunk in chunks]
