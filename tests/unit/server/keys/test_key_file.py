"""The key file: what is wrong in it is told, what is in it is never shown; and the commands that write it."""

from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from guard.errors import PolicyError
from server.cli import app
from server.keys.file import parse_keys
from server.keys.secret import hash_of, make_key, split
from server.keys.store import KeyRefusedError, KeyStore
from server.keys.types import KeyScope

SECRET = "s3cr3t" * 8
FILE = f"""\
apiVersion: interlock/v1
kind: Keys
tenants:
  acme: {{description: the first one}}
  clinic: {{}}
keys:
  - id: a1
    tenant: acme
    sha256: {hash_of(SECRET).hex()}
    scopes: [infer, debug]
  - {{id: b2, tenant: clinic, sha256: {"0" * 64}, expires: "2026-01-01T00:00:00Z"}}
"""
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def parse(tmp_path, text):
    return parse_keys(text.encode(), tmp_path / "keys.yaml")


def store(tmp_path, text=FILE):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    return KeyStore(path, lambda: NOW)


def test_a_key_stands_for_its_tenant_and_scopes(tmp_path):
    client = store(tmp_path).client(f"ilk_a1_{SECRET}")
    assert (client.tenant, client.key_id) == ("acme", "a1")
    assert client.scopes == {KeyScope.INFER, KeyScope.DEBUG}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "malformed"),
        ("sk-something-else", "malformed"),
        (f"ilk_a1_{SECRET} ", "malformed"),
        (f"ilk_a1_{SECRET}\n", "malformed"),
        (f"ilk_zz_{SECRET}", "unknown"),
        (f"ilk_a1_{SECRET[:-1]}x", "wrong"),
        (f"ilk_a1_{hash_of(SECRET).hex()}", "wrong"),  # a thief of the file has no key
        (f"ilk_b2_{SECRET}", "wrong"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path, text, reason):
    with pytest.raises(KeyRefusedError) as refused:
        store(tmp_path).client(text)
    assert refused.value.reason == reason


def test_an_unknown_id_is_never_let_in_by_the_dummy_hash(tmp_path, monkeypatch):
    """Whatever hashes to the dummy: without a key of that id, nobody is let in."""
    monkeypatch.setattr("server.keys.store.hash_of", lambda _: bytes(32))
    with pytest.raises(KeyRefusedError, match="unknown"):
        store(tmp_path).client(f"ilk_zz_{SECRET}")


def test_a_key_ends_when_it_expires(tmp_path):
    until = FILE.replace("scopes: [infer, debug]", "expires: '2026-06-01T00:00:00Z'")
    with pytest.raises(KeyRefusedError, match="expired"):
        store(tmp_path, until).client(f"ilk_a1_{SECRET}")
    later = FILE.replace("scopes: [infer, debug]", "expires: '2026-06-01T00:00:01Z'")
    assert store(tmp_path, later).client(f"ilk_a1_{SECRET}").scopes == {KeyScope.INFER}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("tenant: clinic", "tenant: clinc", "error[unknown-tenant]: keys.1.tenant: no such tenant"),
        ("id: b2", "id: a1", "error[duplicate-id]: keys.1.id: the id of keys.0 again"),
        ("[infer, debug]", "[infer, root]", "keys.0.scopes.1: Input should be 'infer', 'debug' or 'admin'"),
        ("[infer, debug]", "[]", "keys.0.scopes"),
        ("    tenant: acme\n", "", "missing key keys.0.tenant"),
        ("kind: Keys", "kind: Policy", "kind: Input should be 'Keys'"),
        ("2026-01-01T00:00:00Z", "2026-01-01", "write a time with its zone"),
        ("    scopes:", "    scope:", "did you mean 'scopes'?"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path, old, new, told):
    assert old in FILE
    with pytest.raises(PolicyError) as error:
        parse(tmp_path, FILE.replace(old, new))
    assert told in str(error.value)
    assert "keys.yaml:" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        FILE.replace(f"sha256: {hash_of(SECRET).hex()}", f"sha256: ilk_a1_{SECRET}"),
        FILE.replace("    tenant: acme", f"    secret: ilk_a1_{SECRET}\n    tenant: acme"),
        FILE.replace("id: a1", f"id: ilk_a1_{SECRET}"),
        FILE.replace("tenant: acme", f"tenant: 'ilk_a1_{SECRET}: x"),
        FILE.replace("{}", f"ilk_a1_{SECRET}"),
        FILE + f"  - [ilk_a1_{SECRET}",
    ],
)
def test_a_secret_that_somebody_wrote_into_the_file_is_not_shown(tmp_path, text):
    with pytest.raises(PolicyError) as error:
        parse(tmp_path, text)
    assert SECRET not in str(error.value)


def test_a_made_key_is_its_own_and_not_in_its_repr():
    one, other = make_key(), make_key()
    assert one.text != other.text
    key_id, secret = split(one.text)
    assert (key_id, hash_of(secret).hex()) == (one.id, one.sha256)
    assert secret not in repr(one)


# --- the commands


def run(*args):
    return CliRunner().invoke(app, ["keys", *map(str, args)])


def test_create_prints_the_key_alone_and_stores_its_hash_alone(tmp_path):
    file = tmp_path / "keys.yaml"
    made = run("create", "--tenant", "acme", "--file", file, "--scope", "infer", "--scope", "debug")
    assert made.exit_code == 0, made.output
    text = made.stdout.strip()
    _, secret = split(text)
    assert secret not in file.read_text()
    assert secret not in made.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    client = KeyStore(file, lambda: NOW).client(text)
    assert (client.tenant, client.scopes) == ("acme", {KeyScope.INFER, KeyScope.DEBUG})


def test_keys_are_added_and_revoked_and_comments_stay(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text("# ours\n" + FILE)
    file.chmod(0o640)
    text = run("create", "--tenant", "clinic", "--file", file, "--expires", "90d").stdout.strip()
    keys = KeyStore(file, lambda: NOW)
    assert (keys.client(text).tenant, keys.num_keys) == ("clinic", 3)
    assert run("revoke", "a1", "--file", file).exit_code == 0
    with pytest.raises(KeyRefusedError, match="unknown"):
        KeyStore(file, lambda: NOW).client(f"ilk_a1_{SECRET}")
    assert file.read_text().startswith("# ours\n")
    assert file.stat().st_mode & 0o777 == 0o640
    listed = run("list", "--file", file).stdout.splitlines()
    assert len(listed) == 2
    assert "b2  clinic  infer  expired 2026-01-01" in listed[0]
    assert run("revoke", "a1", "--file", file).exit_code == 1


def test_a_misspelt_tenant_is_not_made_by_accident(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(FILE)
    refused = run("create", "--tenant", "acmee", "--file", file)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "acme, clinic" in refused.stderr
    assert file.read_text() == FILE
    assert run("create", "--tenant", "acmee", "--file", file, "--new-tenant").exit_code == 0


def test_a_file_that_is_wrong_is_not_edited_and_check_says_so(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(FILE + "what: is this\n")
    assert run("create", "--tenant", "acme", "--file", file).exit_code == 1
    assert file.read_text() == FILE + "what: is this\n"
    checked = run("check", "--file", file)
    assert (checked.exit_code, "unknown key what" in checked.stderr) == (1, True)
    file.write_text(FILE)
    assert run("check", "--file", file).exit_code == 0


def test_without_a_file_the_entry_is_printed_beside_the_key(tmp_path):
    made = run("create", "--tenant", "acme", "--expires", "2027-01-31T00:00:00Z")
    key_id, secret = split(made.stdout.strip())
    assert f"id: {key_id}" in made.stderr
    assert secret not in made.stderr
    entry = made.stderr.split("\n", 1)[1]
    head = "apiVersion: interlock/v1\nkind: Keys\ntenants: {acme: {}}\nkeys:\n"
    (key,) = parse(tmp_path, head + entry).keys.values()
    assert (key.secret_sha256, key.expires.year) == (hash_of(secret), 2027)
