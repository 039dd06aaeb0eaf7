"""A client that is held by the hand: it sends a request, reads as much as it is told to, and may leave at any moment."""

import http.client
import re
import select
import socket
from collections import defaultdict
from typing import Any

import httpx
import orjson

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


def body_for(endpoint: str, model: str, text: str, *, stream: bool, n: int) -> dict[str, Any]:
    """A request by any surface. (Two of them have no `n`.)"""
    user = [{"role": "user", "content": text}]
    common = {"model": model, "stream": stream, "temperature": 0}
    match endpoint:
        case "chat":
            return {**common, "messages": user, "max_completion_tokens": 24, "n": n}
        case "completions":
            return {**common, "prompt": text, "max_tokens": 24, "n": n}
        case "responses":
            return {**common, "input": text, "max_output_tokens": 24}
        case _:
            return {**common, "messages": user, "max_tokens": 24}


def texts_of(event: dict[str, Any]) -> dict[int, str]:
    """What the model says in a reply, or in one event of a stream, by choice."""
    said: dict[int, str] = defaultdict(str)
    for choice in event.get("choices", ()):
        told = choice.get("delta") or choice.get("message") or {}
        said[choice["index"]] += choice.get("text") or told.get("content") or ""
    if event.get("type") == "response.output_text.delta":
        said[0] += event["delta"]
    if event.get("type") == "content_block_delta":
        said[0] += event["delta"]["text"]
    for item in event.get("output", ()):
        said[0] += "".join(part.get("text", "") for part in item["content"])
    if event.get("type") == "message":
        said[0] += "".join(block["text"] for block in event["content"])
    return said


class Client:
    """One request on a connection of its own."""

    def __init__(self, url: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        where = httpx.URL(url)
        self._socket = socket.create_connection((where.host, where.port), timeout=60)
        sent = orjson.dumps(body)
        head = {
            "host": "x",
            "content-type": "application/json",
            "content-length": len(sent),
            "connection": "close",
        }
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (head | headers).items())]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + sent)
        self._stream = bool(body["stream"])
        self._reply: http.client.HTTPResponse | None = None
        self.texts: dict[int, str] = defaultdict(str)
        self.raw = b""

    @property
    def has_answer(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    @property
    def reply(self) -> http.client.HTTPResponse:
        """Its head; waits for it."""
        if self._reply is None:
            self._reply = http.client.HTTPResponse(self._socket)
            self._reply.begin()
        return self._reply

    def read(self, num_lines: int | None = None) -> None:
        """So many lines, or all."""
        if not (self._stream and self.reply.status == http.HTTPStatus.OK):
            if num_lines is None:
                self.raw = self.reply.read()
                self._take(orjson.loads(self.raw))
            return
        while num_lines is None or num_lines > 0:
            line = self.reply.readline()
            if not line:
                return
            self.raw += line
            if match := re.fullmatch(rb"data: (\{.*\})\n", line):
                self._take(orjson.loads(match[1]))
            num_lines = None if num_lines is None else num_lines - 1

    def _take(self, event: dict[str, Any]) -> None:
        for index, text in texts_of(event).items():
            self.texts[index] += text

    def leave(self) -> None:
        if self._reply is not None:
            self._reply.close()
        self._socket.close()
