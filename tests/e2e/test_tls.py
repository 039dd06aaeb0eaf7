"""TLS on both ports: verified by stock clients, renewed under them, refused in plain words where a file is wrong."""

import contextlib
import signal
import socket
import ssl
from dataclasses import replace

import httpx
import openai
import pytest
from cryptography import x509
from typer.testing import CliRunner

from server.cli import app as cli
from server.config import read_settings
from server.ports import exposed, open_ports
from server.tls import TlsError
from tests.e2e.certificates import Authority, ec_key, pem, rsa_key
from tests.e2e.lifecycle_server import HELLO, served
from tests.e2e.test_command_line import interlock
from tests.e2e.test_keys import key, key_file
from tests.waiting import until


@pytest.fixture
def ca(tmp_path):
    return Authority(tmp_path / "tls")


def trusting(ca, *, show=None):
    context = ssl.create_default_context(cafile=ca.file)
    if show:
        context.load_cert_chain(*show)
    return context


def client_of(live, ca):
    http = openai.DefaultHttpxClient(verify=trusting(ca))
    return openai.OpenAI(base_url=f"{live.api}/v1", api_key="-", max_retries=0, http_client=http)


def shown(url, ca, **options):
    """The serial number of the certificate that a port shows to who connects now. Raises ssl.SSLError or ConnectionError."""
    host, port = url.removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        trusting(ca, **options).wrap_socket(plain, server_hostname=host) as secured,
    ):
        secured.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        if not (answer := secured.recv(4096)):  # with TLS 1.3 a refusal comes after the handshake
            raise ConnectionError("refused")
        assert answer.startswith(b"HTTP/1.1 200")
        return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True)).serial_number


def test_the_stock_client_is_served_over_tls_streamed_and_not(tmp_path, ca):
    cert, private, _ = ca.write("server")
    with served(tmp_path, tls_cert=cert, tls_key=private) as live, client_of(live, ca) as client:
        live.tell("go")
        assert live.api.startswith("https://")
        whole = client.chat.completions.create(model="scripted", messages=HELLO)
        assert whole.choices[0].message.content == "abc"
        stream = client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "abc"
        for port in (live.api, live.admin):
            with pytest.raises(httpx.TransportError):
                httpx.get(port.replace("https", "http"))
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                httpx.get(port)  # by the CAs of this machine
        live.signal(signal.SIGTERM)
        live.signal(signal.SIGTERM)
        assert live.exit_code == 0


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_renewed_certificate_is_shown_to_new_connections_and_drops_no_old_one(tmp_path, ca, by_signal):
    """Renewed with a key of another kind, as when ACME clients moved from RSA to ECDSA."""
    cert, private, first = ca.write("server", rsa_key())
    settings = {"tls_cert": cert, "tls_key": private, "reload_poll_s": 0.0 if by_signal else 0.05}
    with served(tmp_path, **settings) as live, client_of(live, ca) as client:
        assert shown(live.api, ca) == shown(live.admin, ca) == first
        stream = client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
        next(stream)
        *_, second = ca.write("server", ec_key())
        if by_signal:
            live.signal(signal.SIGHUP)
        until(lambda: shown(live.api, ca) == shown(live.admin, ca) == second)
        rsa_only = trusting(ca)
        rsa_only.maximum_version = ssl.TLSVersion.TLSv1_2
        rsa_only.set_ciphers("aRSA")
        with pytest.raises(httpx.ConnectError):  # the old certificate is gone, also for who would prefer it
            httpx.get(f"{live.api}/livez", verify=rsa_only)
        live.tell("go")
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "abc"
        assert 'interlock_tls_last_reload_successful{port="api"} 1.0' in live.get("/metrics").text


def test_a_pair_that_is_wrong_keeps_the_last_good_one_and_is_counted(tmp_path, ca):
    cert, private, first = ca.write("server")
    with served(tmp_path, tls_cert=cert, tls_key=private, reload_poll_s=0.05) as live:

        def metric(line):
            return line in live.get("/metrics").text

        private.write_bytes(pem(ec_key()))  # of no certificate that is there
        until(lambda: metric('interlock_tls_reloads_total{port="api",result="failure"} 1.0'))
        assert metric('interlock_tls_last_reload_successful{port="api"} 0.0')
        assert f"{private}: not the key of the certificate in {cert}" in live.said
        assert "PRIVATE KEY" not in live.said
        assert shown(live.api, ca) == first
        *_, second = ca.write("server")
        until(lambda: shown(live.api, ca) == second)
        until(lambda: metric('interlock_tls_last_reload_successful{port="api"} 1.0'))


def test_the_admin_port_may_have_its_own_certificate_and_ask_for_one(tmp_path, ca):
    cert, private, api_serial = ca.write("server")
    admin_cert, admin_private, admin_serial = ca.write("admin")
    clients = Authority(tmp_path / "clients", "Clients CA")
    mine, theirs = clients.write("me")[:2], ca.write("somebody")[:2]
    settings = {
        "tls_cert": cert,
        "tls_key": private,
        "admin_tls_cert": admin_cert,
        "admin_tls_key": admin_private,
        "admin_tls_ca": clients.file,
    }
    with served(tmp_path, loaded=False, **settings) as live:
        assert shown(live.api, ca) == api_serial  # which asks for none, so probes can come there
        assert shown(live.admin, ca, show=mine) == admin_serial
        for nobody in (None, theirs):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                shown(live.admin, ca, show=nobody)


def test_prometheus_scrapes_over_tls_with_a_key_from_a_file(tmp_path, ca):
    """As `scheme: https`, `tls_config.ca_file` and `authorization.credentials_file` have it do."""
    cert, private, _ = ca.write("server")
    keys, credentials = tmp_path / "keys.yaml", tmp_path / "credentials"
    keys.write_text(key_file())
    credentials.write_text(key("look") + "\n")
    with (
        served(tmp_path, key=key("ops"), keys=keys, tls_cert=cert, tls_key=private) as live,
        httpx.Client(verify=trusting(ca)) as scraper,
    ):
        url = f"{live.admin}/metrics"
        assert scraper.get(url).status_code == 401
        scraped = scraper.get(url, headers={"authorization": f"Bearer {credentials.read_text().strip()}"})
        assert scraped.status_code == 200
        assert scraped.headers["content-type"].startswith("text/plain")
        assert "interlock_ready 1.0" in scraped.text


def test_interlock_drain_finds_this_machine_s_server_and_trusts_no_other(tmp_path, ca, monkeypatch):
    """By the variables that serve was started with; its certificate names no loopback address, as in a pod."""
    cert, private, _ = ca.write("server", address=None)
    other, _, _ = ca.write("other", address=None)
    with served(tmp_path, tls_cert=cert, tls_key=private, drain_delay_s=0.0) as live:
        monkeypatch.setenv("INTERLOCK__ADMIN_PORT", live.admin.rpartition(":")[2])
        monkeypatch.setenv("INTERLOCK__ADMIN_HOST", "0.0.0.0")  # noqa: S104  # where it listens, not where it is asked
        monkeypatch.setenv("INTERLOCK__TLS_KEY", str(private))
        monkeypatch.setenv("INTERLOCK__TLS_CERT", str(other))
        refused = CliRunner().invoke(cli, ["drain"])
        assert (refused.exit_code, "CERTIFICATE_VERIFY_FAILED" in refused.output) == (1, True)
        assert live.get("/-/drain").json()["phase"] == "serving"
        refused = CliRunner().invoke(cli, ["drain", "--url", live.admin, "--ca", str(ca.file)])
        assert (refused.exit_code, "127.0.0.1" in refused.output) == (
            1,
            True,
        )  # the name is checked where one is given
        monkeypatch.setenv("INTERLOCK__TLS_CERT", str(cert))
        done = CliRunner().invoke(cli, ["drain"])
        assert (done.exit_code, done.output.splitlines()[-1]) == (0, "Drained: nothing runs any more.")


# --- at start --------------------------------------------------------------------------------------------------------


@pytest.fixture
def start():
    """Take the ports, as `serve` does before it loads the model."""
    with contextlib.ExitStack() as stack:

        def opened(**settings):
            ports = open_ports(read_settings(port=0, admin_port=0, **settings))
            for port in ports:
                stack.enter_context(port.listener)
            return ports

        yield opened


def _missing(cert, private):
    private.unlink()
    return f"{private}: can't be read: No such file or directory"


def _swapped(cert, private):
    cert.write_bytes(private.read_bytes())
    return f"{cert}: has not a certificate in PEM form (-----BEGIN CERTIFICATE-----)"


def _no_key(cert, private):
    private.write_bytes(cert.read_bytes())
    return f"{private}: has not a private key in PEM form"


def _encrypted(cert, private):
    private.write_bytes(pem(ec_key(), b"words"))
    return f"{private}: is encrypted, and nobody is there to type its passphrase"


def _another(cert, private):
    private.write_bytes(pem(ec_key()))
    return f"{private}: not the key of the certificate in {cert}"


def _torn(cert, private):
    cert.write_bytes(cert.read_bytes()[:200])
    return f"{cert} and {private}: can't be used as certificate and key"


@pytest.mark.parametrize("spoil", [_missing, _swapped, _no_key, _encrypted, _another, _torn])
def test_a_server_does_not_start_on_files_that_are_wrong_and_names_them(ca, start, spoil):
    cert, private, _ = ca.write("server")
    start(tls_cert=cert, tls_key=private)
    told = spoil(cert, private)
    with pytest.raises(TlsError) as error:
        start(tls_cert=cert, tls_key=private)
    assert told in str(error.value)


def test_a_ca_that_is_wrong_is_named(ca, start, tmp_path):
    cert, private, _ = ca.write("server")
    broken = tmp_path / "ca.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    with pytest.raises(TlsError, match=r"ca\.pem: can't be used as a CA"):
        start(tls_cert=cert, tls_key=private, admin_tls_ca=broken)


def test_half_of_a_pair_is_refused(ca, start):
    cert, private, _ = ca.write("server")
    with pytest.raises(ValueError, match="tls_cert and tls_key go together"):
        start(tls_cert=cert)
    with pytest.raises(ValueError, match="admin_tls_cert and admin_tls_key go together"):
        start(tls_cert=cert, tls_key=private, admin_tls_key=private)
    with pytest.raises(ValueError, match="admin_tls_ca needs a certificate"):
        start(admin_tls_ca=ca.file)


def test_the_command_says_what_is_wrong_and_leaves_with_2(tmp_path):
    said = interlock(
        "serve",
        "--port",
        0,
        "--admin-port",
        0,
        "--tls-cert",
        tmp_path / "no.pem",
        "--tls-key",
        tmp_path / "no.key",
    )
    assert said.returncode == 2
    assert f"{tmp_path / 'no.pem'}: can't be read" in said.stderr
    assert "Traceback" not in said.stderr


def test_ports_that_are_open_to_others_are_warned_of(ca, start):
    cert, private, _ = ca.write("server")
    plain_api, plain_admin = start()
    tls_api, tls_admin = start(tls_cert=cert, tls_key=private)
    _, asking_admin = start(tls_cert=cert, tls_key=private, admin_tls_ca=ca.file)

    def told(port, *, has_keys):
        return exposed(replace(port, host="0.0.0.0"), has_keys=has_keys)  # noqa: S104

    for port in (plain_api, plain_admin):
        assert exposed(port, has_keys=False) == ""  # loopback
        assert "no --keys" in told(port, has_keys=False)
        assert "in the clear" in told(port, has_keys=True)
    for port in (tls_api, tls_admin):
        assert "no --keys" in told(port, has_keys=False)
        assert told(port, has_keys=True) == ""
    assert "drain the server" in told(plain_admin, has_keys=False)
    assert told(asking_admin, has_keys=False) == ""
