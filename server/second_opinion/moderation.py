"""`moderation`: an endpoint in the form of OpenAI's /v1/moderations; what it flags is blocked."""

from typing import Annotated, ClassVar, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from server.second_opinion.settings import ApiSettings, bearer, known_word, not_understood
from server.second_opinion.types import HttpRequest, Judgement, Question


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    flagged: bool
    categories: dict[str, bool | None] = Field(default_factory=dict)


class _Moderations(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    results: list[_Result]


class Moderation(ApiSettings):
    URL_PATH: ClassVar[str] = "/moderations"

    kind: Literal["moderation"]
    model: Annotated[str, Field(min_length=1)] | None = None
    categories: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Only these block. None: whatever the endpoint flags."""

    def request(self, question: Question, secret: SecretStr | None) -> HttpRequest:
        body = {"input": _inputs(question), **({"model": self.model} if self.model else {})}
        return HttpRequest(self.endpoint, orjson.dumps(body), bearer(secret))

    def read(self, body: bytes, question: Question) -> Judgement:
        try:
            results = _Moderations.model_validate_json(body).results
        except ValidationError:
            raise not_understood() from None
        if len(results) != len(_inputs(question)):
            raise not_understood()
        if self.categories is None:
            flagged = [result for result in results if result.flagged]
            named = (name for result in flagged for name, true in result.categories.items() if true)
            return Judgement(not flagged, known_word(next(named, "")))
        if any(category not in result.categories for result in results for category in self.categories):
            raise not_understood()  # a category that is misspelt, or not judged, must not look harmless
        blocking = [c for c in self.categories if any(result.categories[c] for result in results)]
        return Judgement(not blocking, known_word(blocking[0]) if blocking else "")


def _inputs(question: Question) -> list[str]:
    """One input per text, so that a long conversation does not hide a short one. Empty texts are refused by endpoints."""
    texts = [*(message["content"] for message in question.messages), question.reply]
    return [text for text in texts if text.strip()] or [" "]
