"""curl, and what a shell script would read out of its answers."""

import json
import subprocess
import tempfile
from pathlib import Path

from protocol import Answer, Ask, Piece, drive

PATHS = {"chat": "/chat/completions", "completion": "/completions", "models": "/models"}


class HttpError(Exception):
    def __init__(self, status: int, error: Answer) -> None:
        super().__init__(error["message"])
        self.status_code = status
        self.code = error["code"]


def answer(ask: Ask, piece: Piece) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        return _answer(ask, piece, Path(folder) / "body")


def _answer(ask: Ask, piece: Piece, body: Path) -> Answer:
    command = ["curl", "--silent", "--show-error", "--retry", str(ask["retries"])]
    command += ["--header", f"Authorization: Bearer {ask['api_key']}", ask["base_url"] + PATHS[ask["do"]]]
    if ask["do"] != "models":
        prompt = {"prompt": ask["text"]}
        if ask["do"] == "chat":
            prompt = {"messages": [{"role": "user", "content": ask["text"]}]}
        request = {"model": ask["model"], "stream": ask["stream"], **prompt, **ask["options"]}
        if ask["tools"]:
            request["tools"] = ask["tools"]
        command += ["--header", "Content-Type: application/json", "--data", json.dumps(request)]
    if ask["stream"]:
        return streamed([*command, "--no-buffer", "--write-out", "%{stderr}%{http_code}"], piece)
    command += ["--output", str(body), "--write-out", "%{http_code}"]
    status = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
    told = json.loads(body.read_bytes())
    if status != 200:
        raise HttpError(status, told["error"])
    if ask["do"] == "models":
        return {"models": [model["id"] for model in told["data"]]}
    choice = told["choices"][0]
    message = choice.get("message", {"content": choice.get("text")})
    call = (message.get("tool_calls") or [{}])[0].get("function")
    return {
        "text": message["content"],
        "refusal": message.get("refusal"),
        "call": call,
        "finish": choice["finish_reason"],
        "usage": told["usage"]["completion_tokens"],
    }


def streamed(command: list[str], piece: Piece) -> Answer:
    told = {"text": "", "refusal": None, "call": None, "finish": None}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as curl:  # noqa: S603
        for line in curl.stdout:
            if line.startswith("{"):  # no stream began
                raise HttpError(int(curl.stderr.read()), json.loads(line)["error"])
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise HttpError(200, chunk["error"])
            choice = chunk["choices"][0]
            delta = choice.get("delta", {"content": choice.get("text")})
            if delta.get("content"):
                told["text"] += delta["content"]
                piece(delta["content"])
            for call in delta.get("tool_calls", ()):
                told["call"] = call["function"]
            told["refusal"] = delta.get("refusal") or told["refusal"]
            told["finish"] = choice["finish_reason"]
    return told


drive(answer)
