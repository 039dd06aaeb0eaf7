"""The manifests: rendered by kustomize, valid, and at one with the server's settings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from deploy.prometheus import generate
from guard.durations import seconds
from guard.policy import load_policy
from guard.policy_test import run_tests
from server import serve
from server.config import ServerConfig
from server.keys.gate import OPEN
from server.metrics import Metrics
from tests.deploy.crds import CRDS
from tests.deploy.dockerfile import stages
from tests.deploy.tools import DEPLOY, documents, run, tool

KUBERNETES = DEPLOY / "kubernetes"
SERVING = ("cpu-demo", "gpu")
COMPONENTS = ("hpa", "keda", "kept-log")
RENDERED = [*SERVING, "monitoring", *(f"cpu-demo with {name}" for name in COMPONENTS)]
each_rendered = pytest.mark.parametrize("name", RENDERED)
each_serving = pytest.mark.parametrize("name", [name for name in RENDERED if name != "monitoring"])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """`rendered(name)`: the objects of an overlay, alone or with a component, and the text."""
    kubectl = tool("kubectl", "https://kubernetes.io/docs/tasks/tools/")
    copy = tmp_path_factory.mktemp("deploy")
    shutil.copytree(KUBERNETES, copy / "kubernetes")
    for beside in ("policies", "grafana"):
        shutil.copytree(DEPLOY / beside, copy / beside)
    done: dict[str, str] = {}

    def render(name: str) -> str:
        if name not in done:
            overlay, _, component = name.partition(" with ")
            folder = copy / "kubernetes" / "overlays" / overlay
            if component:
                mine = copy / "kubernetes" / "overlays" / f"with-{component}"
                mine.mkdir()
                text = f"resources: [../{overlay}]\ncomponents: [../../components/{component}]\n"
                (mine / "kustomization.yaml").write_text(text)
                folder = mine
            done[name] = run(kubectl, "kustomize", folder)
        return done[name]

    return render


def the(text: str, kind: str) -> dict[str, Any]:
    return next(found for found in documents(text) if found["kind"] == kind)


def pod(text: str) -> dict[str, Any]:
    return the(text, "Deployment")["spec"]["template"]["spec"]


def settings(text: str) -> dict[str, str]:
    """What the container's environment says, with the ConfigMaps that it takes over."""
    container = pod(text)["containers"][0]
    maps = {
        found["metadata"]["name"]: found["data"] for found in documents(text) if found["kind"] == "ConfigMap"
    }
    given: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        given |= maps[source["configMapRef"]["name"]]
    return given | {item["name"]: item["value"] for item in container["env"] if "value" in item}


@each_rendered
def test_every_object_is_valid(rendered, name, tmp_path):
    kinds = [found["kind"] for found in documents(rendered(name))]
    assert kinds
    built_in = [found for found in documents(rendered(name)) if found["kind"] not in CRDS]
    for found in documents(rendered(name)):
        if found["kind"] in CRDS:
            CRDS[found["kind"]].model_validate(found)
    if built_in:
        validate = tool("kubernetes-validate", "pip install kubernetes-validate")
        with (tmp_path / "objects.yaml").open("w") as out:
            YAML(typ="safe", pure=True).dump_all(built_in, out)
        for version in ("1.31", "1.37"):
            run(validate, "--strict", "--quiet", "--kubernetes-version", version, tmp_path / "objects.yaml")


@each_rendered
def test_everything_is_in_one_namespace(rendered, name):
    for found in documents(rendered(name)):
        where = found["metadata"]["name" if found["kind"] == "Namespace" else "namespace"]
        assert where == "interlock", found["kind"]


@each_serving
def test_settings_are_settings(rendered, name, monkeypatch):
    for variable, value in settings(rendered(name)).items():
        if variable.startswith("INTERLOCK__"):
            monkeypatch.setenv(variable, value)
    assert ServerConfig()


@each_serving
def test_a_pod_has_time_to_drain(rendered, name):
    text = rendered(name)
    spec, given = pod(text), settings(text)
    container = spec["containers"][0]
    delay_s, timeout_s = (float(given[f"INTERLOCK__DRAIN_{part}_S"]) for part in ("DELAY", "TIMEOUT"))
    before_stop = container["lifecycle"]["preStop"]["exec"]["command"]
    wait_s = seconds(before_stop[before_stop.index("--wait") + 1])
    assert before_stop[:2] == ["interlock", "drain"]
    assert wait_s > delay_s, "SIGTERM must not come before load balancers have noticed"
    # the drain begins with preStop, or with SIGTERM where that fails; then steps and answers may take as long again
    end_s = 2 * serve._STEP_END_S
    assert spec["terminationGracePeriodSeconds"] > delay_s + timeout_s + end_s
    ready = container["readinessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] < delay_s


@each_serving
def test_probes_ask_what_answers_without_a_key_on_the_admin_port(rendered, name):
    container = pod(rendered(name))["containers"][0]
    asked = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")}
    assert {probe: get["path"] for probe, get in asked.items()} == {
        "startup": "/startupz",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    assert all(get["path"] in OPEN and get["port"] == "admin" for get in asked.values())


@each_serving
def test_ports_are_those_that_the_image_listens_on(rendered, name):
    text = rendered(name)
    image = stages(DEPLOY / "docker" / "Dockerfile")[-1].environment
    ports = {port["name"]: str(port["containerPort"]) for port in pod(text)["containers"][0]["ports"]}
    assert ports == {"api": image["INTERLOCK__PORT"], "admin": image["INTERLOCK__ADMIN_PORT"]}
    assert [port["targetPort"] for port in the(text, "Service")["spec"]["ports"]] == ["api"]


@each_serving
def test_a_pod_has_no_rights(rendered, name):
    spec = pod(rendered(name))
    user = stages(DEPLOY / "docker" / "Dockerfile")[-1].the("USER")
    assert f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" == user
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@each_serving
def test_what_changes_is_mounted_as_folders_and_what_is_written_has_a_volume(rendered, name):
    text = rendered(name)
    mounts = {mount["name"]: mount for mount in pod(text)["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(text)["volumes"]}
    assert set(mounts) == set(volumes)
    for mount in mounts.values():
        assert "subPath" not in mount  # it would never change
    for wanted in ("policies", "keys", "admin-key"):
        assert mounts[wanted]["readOnly"] is True
    given = settings(text)
    assert given["INTERLOCK__POLICY"] == mounts["policies"]["mountPath"]
    assert Path(given["INTERLOCK__KEYS"]).parent == Path(mounts["keys"]["mountPath"])
    state = stages(DEPLOY / "docker" / "Dockerfile")[-1].the("VOLUME")
    assert {mounts["state"]["mountPath"], mounts["tmp"]["mountPath"]} == {state, "/tmp"}  # noqa: S108


@each_serving
def test_an_edited_policy_is_reloaded_and_edited_settings_replace_the_pods(rendered, name):
    names = {found["metadata"]["name"] for found in documents(rendered(name)) if found["kind"] == "ConfigMap"}
    assert "interlock-policies" in names  # without a hash of its content
    assert all(found.startswith("interlock-settings-") for found in names - {"interlock-policies"})
    assert {"configMap": {"name": "interlock-policies"}, "name": "policies"} in pod(rendered(name))["volumes"]


@pytest.mark.parametrize("name", SERVING)
def test_the_policies_are_policies_and_pass_their_tests(rendered, name, tmp_path):
    data = next(
        found["data"]
        for found in documents(rendered(name))
        if found["metadata"]["name"] == "interlock-policies"
    )
    for file, text in data.items():
        (tmp_path / file).write_text(text)
    results = run_tests(load_policy(tmp_path)).results
    assert results
    assert all(result.ok for result in results)


@pytest.mark.parametrize("name", SERVING)
def test_nothing_passes_the_network_but_what_is_named(rendered, name):
    policies = {
        found["metadata"]["name"]: found["spec"]
        for found in documents(rendered(name))
        if found["kind"] == "NetworkPolicy"
    }
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ours = policies["interlock"]
    admin = [rule for rule in ours["ingress"] if {"port": "admin"} in rule["ports"]]
    assert [rule["from"] for rule in admin] == [
        [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    ]
    assert all(rule["ports"] == [{"port": "api"}] for rule in ours["ingress"] if rule not in admin)
    assert {port["port"] for rule in ours["egress"] for port in rule["ports"]} == {53}


@each_serving
def test_selectors_select_the_pods(rendered, name):
    text = rendered(name)
    labels = the(text, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert the(text, "Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert the(text, "Service")["spec"]["selector"] == labels
    assert the(text, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    monitor = documents(KUBERNETES / "overlays" / "monitoring" / "podmonitor.yaml")[0]["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    assert monitor["podMetricsEndpoints"][0]["port"] == "admin"


def test_the_rules_are_those_of_prometheus(rendered):
    assert generate.OUT_KUBERNETES.read_text() == generate.kubernetes_text()
    assert the(rendered("monitoring"), "PrometheusRule")["spec"] == documents(generate.OUT)[0]


def test_every_dashboard_is_given_to_grafana(rendered):
    given = the(rendered("monitoring"), "ConfigMap")
    assert given["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert set(given["data"]) == {path.name for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")}


def test_scraped_pods_have_the_same_job_as_in_compose():
    spec = documents(KUBERNETES / "overlays" / "monitoring" / "podmonitor.yaml")[0]["spec"]
    jobs = documents(DEPLOY / "prometheus" / "prometheus.yml")[0]["scrape_configs"]
    assert spec["selector"]["matchLabels"][spec["jobLabel"]] in {job["job_name"] for job in jobs}


@pytest.mark.parametrize("name", ["hpa", "keda"])
def test_the_autoscaler_alone_says_how_many_and_goes_by_metrics_that_exist(rendered, name):
    text = rendered(f"cpu-demo with {name}")
    assert "replicas" not in the(text, "Deployment")["spec"]
    scaled = the(text, {"hpa": "HorizontalPodAutoscaler", "keda": "ScaledObject"}[name])
    assert scaled["spec"]["scaleTargetRef"]["name"] == the(text, "Deployment")["metadata"]["name"]
    exported = {metric.name for metric in Metrics().registry.collect()}
    for metric in ("interlock_requests_waiting", "interlock_kv_cache_usage_ratio"):
        assert metric in exported
        assert metric in str(scaled["spec"])


def test_kept_logs_replace_the_volume_that_ends_with_the_pod(rendered):
    spec = pod(rendered("cpu-demo with kept-log"))
    state = next(volume for volume in spec["volumes"] if volume["name"] == "state")
    assert state == {"name": "state", "persistentVolumeClaim": {"claimName": "interlock-state"}}
    mount = next(found for found in spec["containers"][0]["volumeMounts"] if found["name"] == "state")
    assert mount["subPathExpr"] == "$(POD_NAME)"
