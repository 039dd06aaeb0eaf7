"""`webhook`: an endpoint of your own decides. Requests are signed as Standard Webhooks are (standardwebhooks.com).

The signature is the base64 of HMAC-SHA256(secret, "{webhook-id}.{webhook-timestamp}.{body}"), so that a receiver can
check it with any library of that standard, and refuse what is old.
"""

import hmac
from base64 import b64decode, b64encode
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from server.second_opinion.settings import EnvName, TargetSettings, known_word, not_understood
from server.second_opinion.types import HttpRequest, Judgement, Question

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)  # the standard's


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    verdict: Literal["allow", "block"]
    reason: Annotated[str, Field(max_length=64)] = ""


class Webhook(TargetSettings):
    kind: Literal["webhook"]
    secret_env: EnvName
    send_text: bool = False
    """Send the conversation and the reply. Without, the endpoint decides on scores and ids."""

    @property
    def key_env(self) -> str:
        return self.secret_env

    def check_secret(self, secret: str) -> None:
        try:
            num_bytes = len(_key(secret))
        except ValueError:
            num_bytes = 0
        if not secret.startswith(_PREFIX) or num_bytes not in _KEY_BYTES:
            raise ValueError(
                f"is not {_PREFIX} followed by 24 to 64 bytes in base64; make one: "
                f'echo "{_PREFIX}$(openssl rand -base64 32)"'
            )

    def request(self, question: Question, secret: SecretStr | None) -> HttpRequest:
        assert secret is not None, "a webhook has a secret"  # noqa: S101
        told = {
            "version": 1,
            "decision_id": question.decision_id,
            "choice": question.choice,
            "policy": question.policy,
            "rule": question.rule,
            "phase": question.phase,
            "token": question.token,
            "scores": dict(question.values),
        }
        if self.send_text:
            told |= {"messages": list(question.messages), "reply": question.reply}
        body = orjson.dumps(told)
        message_id = f"{question.decision_id}-{question.choice}-{question.rule}-{question.token}"
        timestamp = str(int(question.asked_at.timestamp()))
        signed = b".".join((message_id.encode(), timestamp.encode(), body))
        signature = b64encode(hmac.digest(_key(secret.get_secret_value()), signed, "sha256")).decode()
        headers = {
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{signature}",
        }
        return HttpRequest(self.endpoint, body, headers)

    def read(self, body: bytes, question: Question) -> Judgement:
        try:
            answer = _Answer.model_validate_json(body)
        except ValidationError:
            raise not_understood() from None
        return Judgement(answer.verdict == "allow", known_word(answer.reason))


def _key(secret: str) -> bytes:
    """Raises ValueError."""
    return b64decode(secret.removeprefix(_PREFIX), validate=True)
