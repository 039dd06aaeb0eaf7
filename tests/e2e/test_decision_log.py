"""The decision log of a running server: what its records hold, and what clients see while it can't be written."""

import errno
import hmac
import os
import threading

import httpx
import openai
import orjson
import pytest
from typer.testing import CliRunner

from guard.audit import recorded_scores
from guard.types import Phase
from server.app import create_admin_app
from server.auditing.content import ContentRules
from server.auditing.writer import AuditLog, LogSettings
from server.cli import app
from server.engines.scripted import Script
from tests.e2e.conftest import scores
from tests.waiting import until

KEY = b"0123456789abcdef0123456789abcdef"
BLOCK = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: block, version: "7"}
defaults: {log: {content: CONTENT}}
rules:
  - {id: harm, severity: high, when: max(response.harm) > 0.9, then: {block: {}}}
"""
TOKENS = ["All ", "that ", "was ", "said"]


def play(spike=None):
    spikes = {} if spike is None else {"harm": {spike: 0.95}}
    return Script(TOKENS, scores(), scores(**spikes))


def start(serve, content="none", most="full", spike=2, **options):
    rules = ContentRules(most, KEY, 40)
    return serve(
        BLOCK.replace("CONTENT", content), play(spike), service_options={"content": rules, **options}
    )


def hmac_of(text):
    return "hmac-sha256:" + hmac.new(KEY, text.encode(), "sha256").hexdigest()


def test_each_choice_has_a_record_and_together_they_are_a_chain(serve):
    live = start(serve)
    live.chat(n=3)
    records = live.records()
    assert sorted(record["choice"] for record in records) == [0, 1, 2]
    assert len({record["decision_id"] for record in records}) == 1
    assert records[0].keys() >= {
        "v", "ts", "decision_id", "request_id", "trace_id", "tenant", "key_id", "subject", "endpoint", "model", "policy",
        "action", "phase", "token", "delivered_tokens", "stream", "matches", "shadow", "exceptions", "scores", "errors",
        "usage", "timing_ms", "content", "prev", "hash", "seq", "choice", "outcome",
    }  # fmt: skip
    assert records[0]["timing_ms"].keys() == {"prefill", "first_token", "decide", "total"}
    said = CliRunner().invoke(app, ["audit", "verify", str(live.audit_path)])
    assert (said.exit_code, "3 records in 1 file" in said.output) == (0, True)


def test_by_default_no_text_is_recorded(serve):
    live = serve(BLOCK.replace("CONTENT", "full"), play(2))
    live.chat("my secret")
    assert live.records()[0]["content"] == {"mode": "none"}
    assert "secret" not in live.audit_path.read_text()
    assert "said" not in live.audit_path.read_text()


def test_hashes_are_of_the_prompt_as_received_and_of_what_was_withheld_too(serve):
    live = start(serve, "hash")
    live.chat("my secret", user="joe")
    record = live.records()[0]
    assert record["content"]["prompt_hmac"] == hmac_of('[{"role":"user","content":"my secret"}]')
    assert record["content"]["reply_hmac"] == hmac_of("All that was ")  # the third was blocked
    assert record["delivered_tokens"] < 3
    assert record["subject"] == hmac_of("joe")
    for text in ("secret", "joe", "All", KEY.decode()):
        assert text not in live.audit_path.read_text()


def test_excerpts_and_full_texts(serve):
    live = start(serve, "excerpt")
    live.client.completions.create(model=live.model, prompt="call 0151 or joe@example.com")
    told = live.records()[0]["content"]
    assert (told["prompt_excerpt"], told["reply_excerpt"]) == ("call #### or [email]", "All that was ")
    live = start(serve, "full")
    live.client.completions.create(model=live.model, prompt=[72, 105])
    told = live.records()[0]["content"]
    assert (told["prompt"], told["reply"]) == ("[72,105]", "All that was ")


def test_half_a_surrogate_pair_does_not_keep_a_request_out_of_the_log(serve):
    live = start(serve, "full")
    body = (
        b'{"model": "%s", "messages": [{"role": "user", "content": "a\\ud800b"}], "metadata": {"k": "\\ud800"}}'
        % live.model.encode()
    )
    answer = live.http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400 or len(live.records()) == 1


@pytest.mark.parametrize("series", ["exact", "q8", "none"])
def test_scores_are_recorded_as_the_setting_says(serve, series):
    live = start(serve, series=series)
    live.chat()
    record = live.records()[0]
    harm = record["scores"]["response"]["harm"]
    assert harm["max"] == pytest.approx(0.95)
    if series == "none":
        assert not any(key.startswith("series") for key in harm)
    else:
        assert recorded_scores(record, Phase.RESPONSE)["harm"][2] == pytest.approx(0.95, abs=0.01)


class Disk:
    """Fails or blocks on demand."""

    def __init__(self):
        self.failing = False
        self.answers = threading.Event()
        self.answers.set()

    def write(self, fd, data):
        self.answers.wait()
        if self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data)


def start_on(serve, disk, tmp_path, **settings):
    path = tmp_path / "log" / "decisions.jsonl"
    log = AuditLog(path, LogSettings(**settings), write=disk.write)
    live = start(serve, audit=log)
    live.service.metrics.audit.watch(log)
    live.audit_path = path
    return live


def test_closed_refuses_requests_while_the_disk_is_full_and_goes_on_after(serve, tmp_path):
    disk = Disk()
    live = start_on(serve, disk, tmp_path)
    disk.failing = True
    live.chat()  # in flight when the disk filled up: its record is kept
    until(lambda: live.service.audit.trouble)
    with pytest.raises(openai.InternalServerError) as refused:
        live.chat()
    assert (refused.value.status_code, refused.value.code) == (503, "interlock_unavailable")
    assert live.metric("interlock_audit_writable") == 0
    assert live.metric("interlock_failures_total", component="audit", disposition="closed") == 1
    assert live.metric("interlock_shed_total", reason="audit_unwritable") == 1
    health = live.http.get("/health")
    assert (health.status_code, health.headers["x-interlock-note"]) == (
        200,
        "decision log: No space left on device",
    )
    disk.failing = False
    until(lambda: not live.service.audit.trouble)
    live.chat()
    assert len(live.records()) == 2
    assert live.metric("interlock_audit_writable") == 1
    assert "x-interlock-note" not in live.http.get("/health").headers


def test_closed_refuses_requests_while_the_disk_is_stuck(serve, tmp_path):
    disk = Disk()
    live = start_on(serve, disk, tmp_path, stalled_s=0.05)
    disk.answers.clear()
    live.chat()
    until(lambda: live.service.audit.trouble)
    with pytest.raises(openai.InternalServerError):
        live.chat()
    disk.answers.set()


def test_open_serves_on_while_the_disk_is_full(serve, tmp_path):
    disk = Disk()
    live = start_on(serve, disk, tmp_path, on_full="open")
    disk.failing = True
    live.chat()
    until(lambda: live.service.audit.trouble)
    live.chat()
    assert live.metric("interlock_audit_queue_length") == 2
    disk.failing = False
    until(lambda: live.service.audit.queued == 0)


@pytest.mark.anyio
async def test_operators_see_the_state_of_the_log(serve, tmp_path):
    live = start_on(serve, Disk(), tmp_path)
    transport = httpx.ASGITransport(create_admin_app(live.service))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as admin:
        told = (await admin.get("/-/audit")).json()
    assert told.items() >= {"enabled": True, "trouble": None, "refuses_requests": False, "queued": 0}.items()


# --- the commands


def invoke(*args):
    result = CliRunner().invoke(app, ["audit", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def folder(serve):
    live = start(serve)
    live.chat()
    live.chat()
    live.records()
    return live.audit_path.parent


def test_query_finds_decisions_of_a_running_server(folder):
    said = invoke(
        "query", folder, "--action", "block", "--rule", "ha*", "--min-score", "harm=0.9", "--since", "1h"
    )
    assert said.exit_code == 0
    assert said.stdout.count("\n") == 2
    line = said.stdout.splitlines()[0]
    assert all(
        part in line for part in ("block", "response:2", "default/scripted", "harm", "response.harm=0.95")
    )
    records = [orjson.loads(line) for line in invoke("query", folder, "--format", "json").stdout.splitlines()]
    (one,) = invoke(
        "query", folder, "--decision", records[0]["decision_id"], "--format", "json"
    ).stdout.splitlines()
    assert orjson.loads(one) == records[0]
    assert "no decision matches" in invoke("query", folder, "--rule", "other").stderr


def test_index_is_incremental(folder):
    assert "2 records added" in invoke("index", folder).stdout
    assert "0 records added" in invoke("index", folder).stdout


def test_verify_names_the_record_that_was_changed(folder):
    (path,) = folder.glob("*.jsonl")
    intact = invoke("verify", folder)
    last = intact.stdout.split("last: ")[1].strip()
    assert invoke("verify", folder, "--contains", last).exit_code == 0
    path.write_bytes(path.read_bytes().replace(b'"action":"block"', b'"action":"allow"', 1))
    said = invoke("verify", folder)
    assert said.exit_code == 1
    assert said.stdout.startswith(f"{path}:1: changed: ")
    told = orjson.loads(invoke("verify", path, "--format", "json").stdout)
    assert (told["ok"], told["broken"]["kind"], told["broken"]["line"]) == (False, "changed", 1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["verify", "nowhere.jsonl"], "nowhere.jsonl: No such file or directory"),
        (["query", "nowhere"], "nowhere: no such folder; name the one"),
        (["index", "nowhere"], "nowhere: no such folder"),
        (["query", "FOLDER", "--since", "yesterday"], "'yesterday' is no time; write"),
        (["query", "FOLDER", "--min-score", "harm"], "'harm' is no score; write monitor=number"),
        (["query", "FOLDER", "--db", "/nowhere/index.sqlite"], "/nowhere/index.sqlite: No such file"),
        (["query", "FOLDER", "--db", "FILE"], "the index: file is not a database"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, args, said):
    (tmp_path / "file").write_text("this is not a database, but a text that is long enough")
    names = {"FOLDER": tmp_path, "FILE": tmp_path / "file"}
    result = invoke(*(names.get(arg, arg) for arg in args))
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_has_examples():
    for command in ("verify", "index", "query"):
        assert "interlock audit" in invoke(command, "--help").stdout
