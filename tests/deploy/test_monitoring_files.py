"""Prometheus, Alertmanager and Grafana: their files are valid and name each other as compose does."""

from urllib.parse import urlsplit

from server.config import ServerConfig
from tests.deploy.test_compose import COMPOSE, SERVICES, bound
from tests.deploy.tools import DEPLOY, documents, run, tool

PROMETHEUS = DEPLOY / "prometheus" / "prometheus.yml"
PROVISIONING = DEPLOY / "grafana" / "provisioning"


def test_promtool_accepts_the_configuration_and_the_rules():
    promtool = tool("promtool", "Debian's prometheus")
    run(promtool, "check", "config", "--syntax-only", PROMETHEUS)  # the key's file is not here
    rules = sorted((PROMETHEUS.parent / "rules").glob("*.yml"))
    if rules:
        run(promtool, "check", "rules", *rules)


def test_amtool_accepts_the_configuration():
    run(
        tool("amtool", "Debian's prometheus-alertmanager"),
        "check-config",
        DEPLOY / "alertmanager" / "alertmanager.yml",
    )


def test_prometheus_scrapes_the_admin_port_with_a_key():
    config = documents(PROMETHEUS)[0]
    job = next(job for job in config["scrape_configs"] if job["job_name"] == "interlock")
    admin_port = ServerConfig.model_fields["admin_port"].default
    assert job["static_configs"] == [{"targets": [f"interlock:{admin_port}"]}]
    secret = job["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in SERVICES["prometheus"]["secrets"]
    assert secret in COMPOSE["secrets"]
    managers = config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert managers == ["alertmanager:9093"]


def test_rules_and_configuration_lie_where_prometheus_is_told_to_look():
    assert ("../prometheus", "/etc/prometheus", "ro") in bound(SERVICES["prometheus"])
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]
    assert documents(PROMETHEUS)[0]["rule_files"] == ["rules/*.yml"]
    assert (PROMETHEUS.parent / "rules").is_dir()


def test_grafana_finds_its_dashboards_and_its_data_source():
    places = {where: what for what, where, _ in bound(SERVICES["grafana"])}
    assert places["/etc/grafana/provisioning"] == "../grafana/provisioning"
    provider = documents(PROVISIONING / "dashboards" / "interlock.yaml")[0]["providers"][0]
    assert places[provider["options"]["path"]] == "../grafana/dashboards"
    for source in documents(PROVISIONING / "datasources" / "prometheus.yaml")[0]["datasources"]:
        address = urlsplit(source["url"])
        assert address.hostname in SERVICES
        assert source["editable"] is False
    scraped = documents(PROMETHEUS)[0]["global"]["scrape_interval"]
    sources = documents(PROVISIONING / "datasources" / "prometheus.yaml")[0]["datasources"]
    assert sources[0]["jsonData"]["timeInterval"] == scraped
