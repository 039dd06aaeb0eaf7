"""`interlock health`, which images use instead of curl."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from typer.testing import CliRunner

from server.cli import app as cli
from tests.e2e.lifecycle_server import served


def health(url):
    return CliRunner().invoke(cli, ["health", "--url", url])


def test_health_says_whether_the_server_is_well_and_why_not(tmp_path):
    with served(tmp_path, loaded=False) as live:
        early = health(live.api)
        assert (early.exit_code, early.output) == (1, "not well: model: it is being loaded\n")
        live.load()
        well = health(live.api)
        assert (well.exit_code, well.output) == (0, "well\n")


def test_health_of_no_server_is_told_as_such():
    nobody = health("http://127.0.0.1:9")
    assert nobody.exit_code == 1
    assert "can't reach http://127.0.0.1:9" in nobody.output


def test_health_of_another_server_is_told_as_such():
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        found = health(f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
    assert found.exit_code == 1
    assert "/readyz answered 501, and not as Interlock does" in found.output


def test_health_finds_the_server_by_the_settings_of_serve(tmp_path, monkeypatch):
    with served(tmp_path) as live:
        monkeypatch.setenv("INTERLOCK__HOST", "0.0.0.0")  # noqa: S104
        monkeypatch.setenv("INTERLOCK__PORT", live.api.rpartition(":")[2])
        found = CliRunner().invoke(cli, ["health"])
        assert (found.exit_code, found.output) == (0, "well\n")


def test_a_setting_that_is_wrong_is_no_state_of_health(monkeypatch):
    monkeypatch.setenv("INTERLOCK__PORT", "many")
    wrong = CliRunner().invoke(cli, ["health"])
    assert wrong.exit_code == 2
    assert "port" in wrong.output
