"""What a server can't keep to is never put in force."""

import pytest

from server.auditing.content import ContentRules
from server.auditing.errors import AuditError
from server.policy_store import PolicyStore

POLICY = "apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: p, version: '1'}\ndefaults: {log: {content: none}}\n"


def test_a_policy_that_logs_hashes_is_not_reloaded_without_a_key(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    store = PolicyStore(path, {}, (), check=ContentRules("hash", None).check)
    kept = store.current
    path.write_text(POLICY.replace("none", "hash"))
    with pytest.raises(AuditError, match="needs a key"):
        store.reload()
    assert store.current is kept
