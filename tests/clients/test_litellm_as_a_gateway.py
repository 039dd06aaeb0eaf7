"""LiteLLM's own code for generic guardrails, in front of /beta/litellm_basic_guardrail_api."""

from datetime import UTC, datetime

import pytest

from server.engines.scripted import Script
from server.keys.store import KeyStore
from tests.e2e.conftest import scores
from tests.e2e.test_keys import key, key_file
from tests.e2e.test_litellm_guardrail import BLOCK, REPLACE, Reader


@pytest.fixture
def checked(serve, drivers):
    """Start a server; what LiteLLM's guardrail makes of texts."""
    litellm = drivers("litellm")

    def start(policy=BLOCK, script=None, **service_options):
        live = serve(policy, script or Reader(), service_options=service_options)

        def check(*texts, input_type="request", rows=None, key="unused", **options):
            inputs = {"texts": list(texts)}
            if rows is not None:
                inputs["structured_messages"] = rows
            return litellm.ask(
                "guardrail", live.url, key=key, inputs=inputs, input_type=input_type, options=options
            )

        return check

    return start


@pytest.mark.parametrize("input_type", ["request", "response"])
def test_what_is_allowed_passes_unchanged(checked, input_type):
    assert checked()("good", "fine", input_type=input_type)["texts"] == ["good", "fine"]


@pytest.mark.parametrize("input_type", ["request", "response"])
def test_a_block_is_a_verdict_with_the_policys_message(checked, input_type):
    error = checked()("good", "bad", input_type=input_type)["error"]
    assert "GuardrailRaisedException" in error["kinds"]
    assert error["message"] == "Withheld."


def test_a_conversation_is_read_with_its_parts(checked):
    rows = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "bad"}]},
    ]
    assert "GuardrailRaisedException" in checked()("be kind", "bad", rows=rows)["error"]["kinds"]


def test_a_replaced_response_comes_back_as_other_texts(checked):
    assert checked(REPLACE)("good", "bad", input_type="response")["texts"] == ["good", "Withheld."]


def test_what_can_not_be_judged_is_a_failure_and_no_verdict(checked):
    """LiteLLM fails closed on it, unless it is told to fail open."""
    check = checked(script=Script(["x"], {}, scores()))
    error = check("good")["error"]
    assert "GuardrailRaisedException" not in error["kinds"]
    assert "503" in error["message"]
    assert check("good", unreachable_fallback="fail_open")["texts"] == ["good"]


def test_its_key_is_asked_for(checked, tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(key_file())
    check = checked(keys=KeyStore(path, lambda: datetime.now(UTC)))
    assert "401" in check("good", key="ilk_acme_wrong")["error"]["message"]
    assert check("good", key=key("acme"))["texts"] == ["good"]
    bearer = {"Authorization": f"Bearer {key('acme')}"}
    assert check("good", key=None, headers=bearer)["texts"] == ["good"]
