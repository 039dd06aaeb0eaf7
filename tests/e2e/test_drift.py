"""What operators see when scores are no longer those of the calibration."""

import asyncio
from dataclasses import replace

import httpx
import numpy as np

from monitors.artifacts import MonitorSet
from monitors.artifacts.canary import Canary, CanarySequence
from monitors.base import Calibration, Reference, Threshold
from server.canary import CanaryWatch
from server.drift import DriftCollector, DriftWatch
from server.engines.scripted import Script, ScriptedEngine
from tests.e2e.conftest import ALLOW_ONLY

CALIBRATION = Calibration(
    1000,
    0.95,
    (Threshold("response", 0.01, 0.5, certified=True),),
    references=(Reference("response", 1000, tuple(np.linspace(0.0, 0.5, 21).tolist())),),
)


def test_a_raised_exceedance_rate_becomes_an_alarm_in_the_metrics(serve):
    engine = ScriptedEngine(
        lambda _: Script(["a", "b"], response_scores={"harm": [0.2, 0.9]}), ["harm", "deception"]
    )
    drift = DriftWatch()
    drift.install([replace(m, calibration=CALIBRATION) for m in engine.monitors])
    live = serve(ALLOW_ONLY, engine=engine, service_options={"drift": drift})
    live.service.metrics.registry.register(DriftCollector(drift, engine.row_norms))

    def alarm():
        return live.metric("interlock_monitor_drift_alarm", monitor="harm", scope="response", alarm="tail")

    live.chat()
    assert alarm() == 0
    for _ in range(10):
        live.chat()
    assert alarm() == 1
    assert live.metric("interlock_monitor_exceedance_ratio", monitor="harm", scope="response") == 1.0
    assert live.metric("interlock_monitor_drift_evidence", monitor="harm", scope="response") > 3


def test_requests_are_refused_while_canaries_fail_and_served_again_when_they_pass(serve):
    engine = ScriptedEngine(
        lambda _: Script(["hi"], response_scores={"harm": [0.1]}, prompt_scores={"harm": [0.25] * 5}),
        ["harm", "deception"],
    )
    watch = CanaryWatch(engine)
    live = serve(ALLOW_ONLY, engine=engine, service_options={"canary": watch})

    def check(maximum):
        canary = Canary(
            monitor="harm",
            weights_sha256="0" * 64,
            sequences=(CanarySequence(ids=(1, 2), maximum=maximum),),
        )
        monitors = MonitorSet(engine.monitors, canaries=(canary,))
        return asyncio.run_coroutine_threadsafe(watch.check(monitors), live.loop).result(10)

    def post():
        body = {"model": live.model, "messages": [{"role": "user", "content": "hello"}]}
        return httpx.post(f"{live.url}/v1/chat/completions", json=body)

    assert check(0.75) == ("harm",)
    refused = post()
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "interlock_unavailable"
    assert httpx.get(f"{live.url}/health").status_code == 503
    assert live.metric("interlock_failures_total", component="canary", disposition="closed") == 1
    assert check(0.25) == ()
    assert post().status_code == 200
    assert httpx.get(f"{live.url}/health").status_code == 200
