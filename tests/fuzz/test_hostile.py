"""Bytes made to hurt, on a real socket: each is refused clearly or the connection is closed, the next request works, and no log tells of it."""

import contextlib
import http.client
import itertools
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.test_every_route_is_guarded import NEVER_RUNS_THE_MODEL, RUNS_THE_MODEL
from tests.waiting import until

CHAT = "/v1/chat/completions"
HELLO = '{"model": "scripted", "messages": [{"role": "user", "content": "hello"}]'
PLAIN = f"{HELLO}}}"


def connect(url):
    where = httpx.URL(url)
    return socket.create_connection((where.host, where.port), timeout=60)


def all_of(connection):
    """What comes until the server closes."""
    received = b""
    try:
        while some := connection.recv(65536):
            received += some
    except ConnectionResetError:  # it closed while we were still sending
        pass
    return received


def post(url, body, path=CHAT, **headers):
    """Of bytes as they are: the status and the error's code and message."""
    sent = body.encode() if isinstance(body, str) else body
    given = {"host": "x", "content-type": "application/json", "content-length": len(sent)}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [
        f"POST {path} HTTP/1.1",
        *(f"{k}: {v}" for k, v in given.items() if v is not None),
        "connection: close",
    ]
    with connect(url) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + sent)
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        told = json.loads(reply.read())
    return reply.status, told.get("error", {}).get("code"), told.get("error", {}).get("message")


def more(text):
    """An ordinary request with more in it."""
    return f"{HELLO}, {text}}}"


BODIES = {
    "arrays in arrays": ("[" * 200_000 + "]" * 200_000, 400),
    "objects in objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, 400),
    "arrays that never end": ("[" * 200_000, 400),
    "depth in a field that nobody reads": (more('"x": ' + "[" * 900 + "]" * 900), 400),
    "depth in a tool": (more('"tools": [' + '{"a":' * 500 + "1" + "}" * 500 + "]"), 400),
    "depth that is only text": (more(f'"user": "{"[{" * 200}"'), 200),
    "a number beyond all": (more('"temperature": 1e400'), 400),
    "a number of thousands of digits": (more(f'"seed": {"9" * 5000}'), 400),
    "as many as Python reads": (more(f'"max_tokens": {"9" * 4000}'), 400),
    "NaN": (more('"temperature": NaN'), 400),
    "infinity in a field that nobody reads": (more('"x": -Infinity'), 400),
    "a key twice": (more('"model": "other"'), 400),
    "a key twice, deep inside": (more('"x": [{"a": 1, "a": 1}]'), 400),
    "no UTF-8": (PLAIN.encode().replace(b"hello", b"\xff\xfe"), 400),
    "UTF-8 cut short": (PLAIN.encode().replace(b"hello", b"\xe2\x82"), 400),
    "UTF-16": (PLAIN.encode("utf-16"), 400),
    "half a surrogate pair": (PLAIN.replace("hello", "\\ud800"), 400),
    "half of one as a key": (more('"\\udfff": 1'), 400),
    "half of one in a text nobody reads": (more('"x": "\\ud800"'), 200),
    "a NUL in a text": (PLAIN.replace("hello", "a\\u0000b"), 200),
    "a bare NUL": (PLAIN.replace("hello", "a\0b"), 400),
    "a million characters": (PLAIN.replace("hello", "x" * 1_000_000), 400),
    "a million characters, escaped": (PLAIN.replace("hello", "\\ud83d\\ude00" * 200_000), 400),
    "a million messages": ('{"model": "scripted", "messages": [' + "{}," * 1_000_000 + "{}]}", 400),
    "a hundred thousand fields": ("{" + ",".join(f'"f{i}": 1' for i in range(100_000)) + "}", 400),
    "nothing": ("", 400),
    "null": ("null", 400),
    "a text": ('"hello"', 400),
    "two documents": (PLAIN + PLAIN, 400),
    "half a document": (PLAIN[:-5], 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_odd_bodies(ports, name):
    body, expected = BODIES[name]
    status, _, message = post(ports.api, body)
    assert status == expected
    assert expected == 200 or (message and len(message) < 1000)
    ports.is_well()


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_body_that_is_not_said_to_be_json_is_a_415(ports, kind):
    status, code, _ = post(ports.api, PLAIN, content_type=kind)
    assert (status, code) == (415, "unsupported_media_type")


def test_json_is_json_in_any_spelling_of_its_name(ports):
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"):
        assert post(ports.api, PLAIN, content_type=kind)[0] == 200


CHUNKED = (
    f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
)
RAW = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 300, 400),
    "HTTP 0.9": (b"GET /health\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    "a negative length": (b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", 400),
    "two lengths": (
        b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        400,
    ),
    "a length of thousands of digits": (
        b"POST /ping HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n",
        400,
    ),
    "an unknown encoding": (b"POST /ping HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 400),
    "length and chunks": (f"{CHUNKED}content-length: 5\r\n\r\n0\r\n\r\n".encode(), 400),
    "a chunk of no size": (f"{CHUNKED}\r\nZZZ\r\nxx".encode(), 400),
    "a colon missing": (b"GET /health HTTP/1.1\r\nhost x\r\n\r\n", 400),
    "a folded header": (
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: b\r\n\tc\r\nconnection: close\r\n\r\n",
        200,
    ),
    "a NUL in a header": (b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: \0\r\n\r\n", 400),
    "a space in the path": (b"GET /he alth HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a hundred kilobytes of one header": (
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: " + b"b" * 100_000 + b"\r\n\r\n",
        431,
    ),
    "a header that never ends": (b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: " + b"b" * 1_000_000, 431),
    "ten thousand headers": (
        b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        + b"".join(b"x-%d: b\r\n" % i for i in range(10_000))
        + b"\r\n",
        431,
    ),
    "a million characters of path": (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
    "a path up and out": (b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 404),
    "a path of odd bytes": (b"GET /%00%ff%2e%2e/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 404),
    "another server's URL": (b"GET http://elsewhere/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 404),
    "a tunnel": (b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 404),
    "a length beyond all": (
        b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 1000000000000\r\n\r\n{",
        413,
    ),
}


READS_NO_BODY = {("a length beyond all", "admin")}


@pytest.mark.parametrize(
    ("name", "port"),
    [(name, port) for name in RAW for port in ("api", "admin") if (name, port) not in READS_NO_BODY],
)
def test_odd_bytes(ports, name, port):
    sent, expected = RAW[name]
    with connect(getattr(ports, port)) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # it is refused before all is sent
            connection.sendall(sent)
        received = all_of(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    # what was refused before it was all sent may find the connection reset before the answer is read
    assert (not received and len(sent) > 50_000) or head.startswith(b"HTTP/1.1 %d " % expected), received[
        :300
    ]
    if received and expected != 200:
        assert json.loads(body)["error"]["message"]
    ports.is_well()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", ["false", "true"])
def test_old_http_is_served_too(ports, version, stream):
    body = more(f'"stream": {stream}')
    with connect(ports.api) as connection:
        head = f"POST {CHAT} HTTP/{version}\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        received = all_of(connection)
    assert received.startswith(b"HTTP/1.1 200")
    assert stream == "false" or b"data: [DONE]" in received


def test_pipelined_requests_are_answered_in_order(ports):
    bodies = [PLAIN, "{", more('"stream": true'), PLAIN]
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    sent = "".join(f"{head}content-length: {len(body)}\r\n\r\n{body}" for body in bodies)
    with connect(ports.api) as connection:
        connection.sendall(sent.encode())
        received = b""
        while received.count(b"HTTP/1.1 ") < 4 or not received.endswith(b"}}"):
            received += connection.recv(65536)
        statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 400, 200, 200]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "BREW"])
def test_no_other_method_does_anything(ports, method):
    for known, path in {**RUNS_THE_MODEL, **NEVER_RUNS_THE_MODEL}:
        if (method, path) in NEVER_RUNS_THE_MODEL:
            continue
        base = ports.admin if path.startswith(("/-", "/debug")) else ports.api
        reply = ports.http.request(method, base + path.replace("{model_id:path}", "scripted"))
        assert reply.status_code == 405, (method, path)
        assert known in reply.headers["allow"] or path in {"/health", "/ping", "/-/drain"}


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "TLS/1.0"])
def test_no_connection_is_upgraded(ports, upgrade):
    headers = {
        "connection": "upgrade",
        "upgrade": upgrade,
        "sec-websocket-key": "x",
        "sec-websocket-version": "13",
    }
    assert ports.http.get(ports.api + CHAT, headers=headers).status_code == 405
    assert ports.http.post(ports.api + CHAT, headers=headers, json=json.loads(PLAIN)).status_code == 200


def is_cut_off(connection, sent, *, pause_s=0.0):
    """Whether the server closes before it has taken all that is sent."""
    try:
        for some in sent:
            connection.sendall(some)
            time.sleep(pause_s)
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


# --- slowly ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET", b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-a"])
def test_a_head_that_never_comes_is_given_up(ports, sent, monkeypatch):
    monkeypatch.setattr("server.http_protocol._HEAD_S", 0.5)
    with connect(ports.api) as connection:
        connection.sendall(sent)
        assert all_of(connection).startswith(b"HTTP/1.1 408 ")


def test_a_head_that_comes_letter_by_letter_is_given_up(ports, monkeypatch):
    monkeypatch.setattr("server.http_protocol._HEAD_S", 0.5)
    with connect(ports.api) as connection:
        assert is_cut_off(connection, itertools.repeat(b"x", 2000), pause_s=0.02)


def test_a_body_that_never_comes_is_given_up(ports, monkeypatch):
    with monkeypatch.context() as soon:
        soon.setattr("server.middleware._BODY_S", 0.5)
        assert post(ports.api, b"", content_length=100)[:2] == (408, "request_timeout")
        assert post(ports.api, PLAIN[:20], content_length=100)[:2] == (408, "request_timeout")
    ports.is_well()


def test_a_body_without_end_is_refused_and_then_cut_off(ports, monkeypatch):
    monkeypatch.setattr("server.http_protocol._LINGER_S", 0.5)
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    with connect(ports.api) as connection:
        connection.sendall(f"{CHUNKED}\r\n".encode())
        assert is_cut_off(connection, itertools.repeat(chunk, 1_000_000))
    ports.is_well()


def test_an_idle_connection_is_not_one_that_is_slow(ports, monkeypatch):
    """Between requests it may rest as long as connections are kept."""
    monkeypatch.setattr("server.http_protocol._HEAD_S", 2.0)
    with connect(ports.api) as connection:
        for pause_s in (3.0, 0.0):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            time.sleep(pause_s)


def test_slow_connections_hold_up_nobody(ports):
    slow = [connect(ports.api) for _ in range(200)]
    for index, connection in enumerate(slow):
        connection.sendall(f"{CHUNKED}\r\n".encode()[: 20 + index])
    ports.is_well()
    for connection in slow:
        connection.close()
    until(lambda: 'interlock_places_taken{model="scripted"} 0.0' in ports.metrics)


# --- many --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
def test_thousands_of_tiny_requests(ports, reuse):
    """Ten thousand of them (a tenth without reuse), some of which are wrong."""
    each = 1_250 if reuse else 125
    sent = [PLAIN, "{", '{"model": "nobody", "messages": []}', "[]"]
    failed = []

    def some(_):
        where = httpx.URL(ports.api)
        connection = http.client.HTTPConnection(where.host, where.port, timeout=60)
        for index in range(each):
            close = {} if reuse else {"connection": "close"}
            connection.request("POST", CHAT, sent[index % 4], {"content-type": "application/json", **close})
            reply = connection.getresponse()
            reply.read()
            if reply.status != (200, 400, 400, 400)[index % 4]:
                failed.append(reply.status)
        connection.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(some, range(8)))
    assert not failed
    ports.is_well()
    until(lambda: 'interlock_places_taken{model="scripted"} 0.0' in ports.metrics)


def test_and_nothing_of_all_this_was_logged(ports):
    """At a production server's level: nobody fills a disk, or wakes anybody, by sending nonsense."""
    told = ports.logs.text
    loud = [line for line in told.splitlines() if '"event": "request"' not in line]
    assert not [line for line in loud if re.search("traceback|warn|error", line, re.IGNORECASE)], told[-3000:]
    assert threading.active_count() < 200
