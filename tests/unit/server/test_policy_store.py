"""What a server can't keep to is never put in force."""

import asyncio
import contextlib
from pathlib import Path

import pytest
import torch

from guard.errors import GuardError, PolicyError
from monitors.artifacts import MonitorSet
from monitors.base import Evidence, Monitor
from monitors.linear import Linear
from monitors.sae_feature import SaeFeature
from monitors.types import CausalVerdict, HookPoint
from server.auditing.content import ContentRules
from server.auditing.errors import AuditError
from server.last_good import LastGood
from server.policy_store import PolicyStore, Sources, describe_monitors, frozen_mounts

POLICY = "apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: p, version: '1'}\ndefaults: {log: {content: none}}\n"


pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def unused(_monitors):
    pytest.fail("the monitors did not change")


def store_of(path, *monitors, **options):
    return PolicyStore(Sources(path, None, lambda: known(*monitors)), **options)


async def test_a_policy_that_logs_hashes_is_not_reloaded_without_a_key(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    store = store_of(path, check=ContentRules("hash", None).check)
    kept = store.current
    path.write_text(POLICY.replace("none", "hash"))
    with pytest.raises(AuditError, match="needs a key"):
        await store.reload(unused)
    assert store.current is kept


RULES = """\
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "%s"}
rules:
%s
tests:
  - {name: quiet, given: {}, expect: {action: allow}}
"""


def rules(version, *names):
    lines = [f"  - {{id: {name}, when: max(prompt.{name}) > 0.5, then: {{log: {{}}}}}}" for name in names]
    return RULES % (version, "\n".join(lines))


def known(*names):
    from server.engines.scripted import Script, ScriptedEngine  # noqa: PLC0415

    engine = ScriptedEngine(lambda _: Script(), names)
    assert all(isinstance(monitor, Monitor) for monitor in engine.monitors)
    return MonitorSet(engine.monitors)


async def test_a_policy_that_loses_most_of_its_rules_is_refused_unless_that_is_meant(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(rules(1, "a", "b", "c"))
    store = PolicyStore(Sources(path, None, lambda: known("a", "b", "c")))
    path.write_text(rules(2, "a"))
    with pytest.raises(ValueError, match="2 of 3 enforced rules would vanish"):
        await store.reload(unused)
    assert store.current.version == "1"
    await store.reload(unused, allow_shrink=True)
    assert store.current.version == "2"


async def test_a_symlink_swap_is_seen_once_it_stands_still_and_a_wrong_policy_is_tried_once(tmp_path):
    """As Kubernetes updates a ConfigMap: files behind `..data`, which is replaced."""
    for version in (1, 2):
        (tmp_path / f"v{version}").mkdir()
        (tmp_path / f"v{version}" / "policy.yaml").write_text(rules(version, "a"))
    mount = tmp_path / "mount"
    mount.mkdir()
    (mount / "..data").symlink_to(tmp_path / "v1")
    (mount / "policy.yaml").symlink_to("..data/policy.yaml")
    store = PolicyStore(Sources(mount, None, lambda: known("a")))
    calls = []

    async def reload():
        calls.append(1)
        with contextlib.suppress(ValueError, GuardError):
            await store.reload(unused)

    async def eventually(condition):
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110  # there is nothing that would tell
                await asyncio.sleep(0.005)

    watching = asyncio.create_task(store.watch(reload, 0.01))
    (mount / "fresh").symlink_to(tmp_path / "v2")
    (mount / "fresh").rename(mount / "..data")
    await eventually(lambda: store.current.version == "2")
    (tmp_path / "v2" / "policy.yaml").write_text("rules: [")
    await eventually(lambda: len(calls) == 2)
    await asyncio.sleep(0.1)
    assert len(calls) == 2
    assert store.current.version == "2"
    watching.cancel()


async def test_the_engine_exchanges_monitors_only_when_the_artifacts_changed(tmp_path):
    path, artifacts = tmp_path / "policy.yaml", tmp_path / "monitors"
    path.write_text(rules(1, "a"))
    (artifacts / "a").mkdir(parents=True)
    (artifacts / "a" / "monitor.json").write_text("1")
    store = PolicyStore(Sources(path, artifacts, lambda: known("a")))
    kept = store.in_force.scoring
    path.write_text(rules(2, "a"))
    await store.reload(unused)
    assert store.in_force.scoring is kept
    (artifacts / "a" / "monitor.json").write_text("2")
    installed = []

    async def install(monitors):
        installed.append(monitors)

    await store.reload(install)
    assert installed == [store.in_force.monitors]
    assert store.in_force.scoring is not kept


# --- the last good policy, and mounts that never change


@pytest.mark.parametrize("whole_folder", [False, True])
async def test_a_server_starts_on_the_last_good_policy_if_this_one_is_wrong(tmp_path, whole_folder):
    kept = LastGood(tmp_path / "kept")
    path = tmp_path / "policy"
    file = path / "a.yaml" if whole_folder else path
    file.parent.mkdir(exist_ok=True)
    file.write_text("rules: [")
    with pytest.raises(PolicyError):  # nothing is kept yet
        store_of(path, "a", "b", last_good=kept)
    file.write_text(rules(1, "a"))
    first = store_of(path, "a", "b", last_good=kept)
    assert first.last_error == ""
    file.write_text(rules(2, "a", "b"))
    await first.reload(unused)
    file.write_text("rules: [")
    with pytest.raises(PolicyError):
        await first.reload(unused)
    assert "expected the node content" in first.last_error
    again = store_of(path, "a", "b", last_good=kept)
    assert (str(again.current), again.last_error) == (str(first.current), first.last_error)
    assert (
        again.in_force.sources == again._sources.digests()
    )  # what is wrong was seen: it is not tried every two seconds
    file.write_text(rules(3, "a"))
    await again.reload(unused)
    assert (again.current.version, again.last_error) == ("3", "")
    assert len([f for f in (tmp_path / "kept").iterdir() if not f.is_symlink()]) == 1


async def test_a_policy_that_can_t_be_kept_is_served_all_the_same(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(rules(1, "a"))
    (tmp_path / "kept").write_text("a file, where a folder should be")
    assert store_of(path, "a", "b", last_good=LastGood(tmp_path / "kept")).current.version == "1"


def test_a_file_that_is_a_mount_of_its_own_is_told(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "36 35 98:0 / / rw,noatime master:1 - ext3 /dev/root rw\n"
        "37 36 98:0 /volumes/x/p.yaml /etc/policy/p.yaml ro,relatime - ext4 /dev/sda rw\n"
    )
    files = [Path("/etc/policy/p.yaml"), Path("/etc/policy/q.yaml")]
    assert frozen_mounts(files, mounts) == files[:1]
    assert frozen_mounts(files, tmp_path / "none") == []


# --- files that change while they are read


def changing(folder, times):
    """A check that rewrites both files of a policy after it was read, so many times."""
    left = iter(range(times))

    def check(policy):
        if (version := next(left, None)) is not None:
            for name in "ab":
                (folder / f"{name}.yaml").write_text(rules(version + 2, name))

    return check


def two_files(folder):
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.yaml").write_text(rules(1, name))


def test_what_changed_while_it_was_read_is_read_again(tmp_path):
    two_files(tmp_path / "p")
    assert store_of(tmp_path / "p", "a", "b", check=changing(tmp_path / "p", 2)).current.version == "3"


def test_half_of_a_change_is_no_reason_to_complain_of(tmp_path):
    """Two files exchange their rules. Between the one and the other, an id is used twice, and yet nothing is wrong."""
    two_files(tmp_path / "p")
    changes = iter([("b", "a"), ("a", "b")])

    def read_monitors():
        if change := next(changes, None):
            file, rule = change
            (tmp_path / "p" / f"{file}.yaml").write_text(rules(2, rule))
        return known("a", "b")

    policy = PolicyStore(Sources(tmp_path / "p", None, read_monitors)).current
    assert (policy.version, [rule.id for rule in policy.rules]) == ("2", ["b", "a"])


def test_files_that_never_stand_still_are_told(tmp_path):
    two_files(tmp_path / "p")
    with pytest.raises(ValueError, match="keep changing"):
        store_of(tmp_path / "p", "a", "b", check=changing(tmp_path / "p", 9))


# --- what the guard is told of monitors


PROBE = Linear((HookPoint(0),), torch.ones(1, 4), torch.zeros(1))
FEATURE = SaeFeature(HookPoint(0), encoder=torch.ones(4), decoder=torch.ones(4), bias=0.0, feature=7)


@pytest.mark.parametrize(
    ("evidence", "transform", "told"),
    [
        (None, PROBE, ""),
        (None, FEATURE, "run `interlock sae check`"),
        (Evidence(), FEATURE, "its SAE was not tested on plain text"),
        (Evidence(verdict=CausalVerdict.READOUT), PROBE, ""),
        (Evidence(verdict=CausalVerdict.INVALID), PROBE, "(verdict 'invalid')"),
        (Evidence(accepted=True), FEATURE, ""),
        (Evidence(accepted=False), FEATURE, "failed the acceptance test on plain text"),
        (Evidence(accepted=False), PROBE, ""),  # it has no SAE
    ],
)
def test_evidence_against_a_monitor_bars_it(evidence, transform, told):
    barred = describe_monitors([Monitor("m", transform, evidence=evidence)])["m"].barred
    assert (told in barred, bool(barred)) == (True, bool(told))
