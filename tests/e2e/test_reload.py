"""Reloading under load: no request is lost, and none is served by half a policy."""

import asyncio
import random
import threading
import time

import pytest

from guard.errors import PolicyError
from monitors.aggregate import AggregatorSpec
from monitors.artifacts import ArtifactError, save_monitor
from monitors.base import Link, Monitor
from monitors.linear import Linear
from monitors.types import HookPoint
from server.engines.scripted import Script
from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import prepare
from server.policy_store import PolicyStore, Sources
from server.tokenizer import ModelTokenizer
from tests.e2e.conftest import scores
from tests.waiting import until

POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {{name: p, version: "{version}"}}
rules:
  - {{id: one, when: max(prompt.harm) > 0.5, then: {{replace: {{message: "one {version}"}}}}, match: {{metadata: {{ask: [one]}}}}}}
  - {{id: two, when: max(prompt.harm) > 0.5, then: {{replace: {{message: "two {version}"}}}}, match: {{metadata: {{ask: [two]}}}}}}
tests:
  - {{name: t, given: {{metadata: {{ask: one}}, prompt: {{harm: "0.9"}}}}, expect: {{action: replace}}}}
"""


def test_a_reload_storm_loses_no_request_and_never_serves_half_a_policy(serve):
    """One reload per 100 ms, half of them invalid. Every reply says which policy it was decided by, and is that policy's."""
    live = serve(POLICY.format(version=0), Script(["x"], scores(0.9), scores()))
    path = live.service.policies._sources.policy
    stop = threading.Event()
    wrong: list[str] = []
    counted = [0] * 4

    def ask(worker):
        chooser = random.Random(worker)  # noqa: S311  # not a secret
        while not stop.is_set():
            rule = chooser.choice(("one", "two"))
            try:
                raw = live.client.chat.completions.with_raw_response.create(
                    model=live.model, messages=[{"role": "user", "content": "x"}], metadata={"ask": rule}
                )
                text = raw.parse().choices[0].message.content
                version = raw.headers["x-interlock-policy"].split("@")[1].split("#")[0]
                if text != f"{rule} {version}":
                    wrong.append(f"{text!r} under {version}")
            except Exception as error:  # noqa: BLE001  # any lost request is a failure of this test
                wrong.append(repr(error))
            counted[worker] += 1

    workers = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    refused = 0
    for version in range(1, 31):
        broken = version % 2
        path.write_text("rules: [" if broken else POLICY.format(version=version))
        try:
            live.reload()
        except Exception:  # noqa: BLE001  # which kind of error is other tests' matter
            refused += 1
        time.sleep(0.1)
    until(lambda: sum(counted) > 100)
    stop.set()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert refused == 15
    assert live.service.policies.current.version == "30"
    live.reload()
    counted_reloads = [
        live.metric("interlock_policy_reloads_total", result=result)
        for result in ("success", "failure", "unchanged")
    ]
    assert counted_reloads == [15, 15, 1]


@pytest.fixture
def tiny_with_artifacts(serve, tiny, tmp_path):
    """A server whose monitors come from a folder that a test may change."""
    folder = tmp_path / "monitors"

    def write(name, bias):
        transform = Linear(
            (HookPoint(1),), tiny.model.model.layers[0].self_attn.q_proj.weight[:1].clone(), _tensor(bias)
        )
        monitor = Monitor(name, transform, AggregatorSpec("max"), Link.SIGMOID)
        save_monitor(monitor, folder / name, fingerprint=tiny.fingerprint)

    def start(policy):
        from server.assemble import load_monitors  # noqa: PLC0415

        engine = TransformersEngine(
            tiny, load_monitors(folder, tiny), EngineSettings(max_batch=4, exchange_grace_s=0.2)
        )
        live = serve(policy, engine=engine, tokenizer=ModelTokenizer(tiny.tokenizer), vectors=())
        path = live.service.policies._sources.policy
        store = PolicyStore(Sources(path, folder, lambda: load_monitors(folder, tiny)))

        async def first():
            await live.service.engine.install(store.in_force.monitors)

        asyncio.run_coroutine_threadsafe(first(), live.loop).result(10)
        object.__setattr__(live.service, "policies", store)
        return live

    return write, start


@pytest.fixture(scope="module")
def tiny():
    from tests.tiny_models import TINY  # noqa: PLC0415
    from tests.tiny_tokenizer import tiny_tokenizer  # noqa: PLC0415

    return prepare(TINY["llama"](), tiny_tokenizer(), model_id="tiny")


def _tensor(value):
    import torch  # noqa: PLC0415

    return torch.tensor([float(value)])


def watching(name, version):
    return f"""
apiVersion: interlock/v1
kind: Policy
metadata: {{name: p, version: "{version}"}}
rules:
  - {{id: see, when: "max(response.{name}) > 0.5", then: {{annotate: {{}}}}}}
tests:
  - {{name: t, given: {{response: {{{name}: "0.9"}}}}, expect: {{action: annotate}}}}
"""


def refuses(live, file):
    """Whether a reload fails while the file's last byte is another one."""
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + b"[")
    try:
        live.reload()
    except (PolicyError, ArtifactError):
        return True
    finally:
        file.write_bytes(kept)
    return False


def in_bank(live):
    """Names of the monitors that the next request's passes read."""
    live.chat("hello", max_tokens=2)
    return [monitor.name for monitor in live.service.engine._runtime.bank.monitors]


def test_monitors_named_by_the_new_policy_are_loaded_and_dropped_ones_released_while_traffic_flows(
    tiny_with_artifacts,
):
    write, start = tiny_with_artifacts
    write("low", -40)  # never over 0.5
    live = start(watching("low", 0))
    folder = live.service.policies._sources.monitors
    path = live.service.policies._sources.policy
    stop = threading.Event()
    wrong: list[str] = []
    seen: set[str] = set()

    def ask():
        while not stop.is_set():
            try:
                reply = live.chat("hello", max_tokens=6, extra_body={"ignore_eos": True}).model_extra[
                    "interlock"
                ]
            except Exception as error:  # noqa: BLE001
                wrong.append(repr(error))
                return
            expected = "annotate" if int(reply["policy"].split("@")[1].split("#")[0]) % 2 else "allow"
            seen.add(expected)
            if reply["action"] != expected:
                wrong.append(str(reply))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    refused = 0
    for version in range(1, 13):
        if version % 3:
            name = "high" if version % 2 else "low"
            write(name, 40 if version % 2 else -40)
            path.write_text(watching(name, version))
            live.reload()
        else:  # what is wrong changes nothing: a policy, or an artifact
            refused += refuses(live, path if version % 2 else folder / "low" / "weights.safetensors")
        time.sleep(0.1)
    write("high", 40)
    path.write_text(watching("high", 13))
    live.reload()
    other = folder / "low"
    for file in other.iterdir():
        file.unlink()
    other.rmdir()
    live.reload()
    until(lambda: seen == {"allow", "annotate"})
    stop.set()
    for asker in askers:
        asker.join()
    assert wrong == []
    assert refused == 4
    assert [monitor.name for monitor in live.service.engine.monitors] == ["high"]
    until(lambda: in_bank(live) == ["high"])  # by the requests after those that needed the others
