"""POST /v1/moderations, by the monitors: each text is read as a user's message, in prefill only; nothing is generated."""

from typing import Annotated

import orjson
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guard.types import Phase
from server.admission import Admission
from server.admitted import Admitted, Caller
from server.api.described import Moderations, whole
from server.api.errors import from_failure, unavailable
from server.api.fields import EndUser, Metadata, Text, num_unknown
from server.api.routing import Router
from server.api.running import Events, GuardedResponse
from server.api.schema import TextPart
from server.api.verdicts import (
    ScoreMissingError,
    Verdict,
    check_moderation_model,
    may_see_scores,
    plain_verdict,
    verdict,
)
from server.service import Service

router = Router()

_MAX_INPUTS = 32
_Input = Annotated[Text, Field(min_length=1)]
_Inputs = Annotated[list[_Input], Field(min_length=1, max_length=_MAX_INPUTS)]
_Parts = Annotated[list[TextPart], Field(min_length=1, max_length=_MAX_INPUTS)]


class ModerationRequest(BaseModel):
    """One text, several texts, or the parts of one."""

    model_config = ConfigDict(extra="allow", frozen=True)

    input: _Input | _Inputs | _Parts
    model: str | None = None
    metadata: Metadata | None = None
    user: EndUser | None = None
    safety_identifier: EndUser | None = None

    @property
    def texts(self) -> list[str]:
        if isinstance(self.input, str):
            return [self.input]
        texts = [item for item in self.input if isinstance(item, str)]
        return texts or ["".join(item.text for item in self.input if isinstance(item, TextPart))]


@router.post("/v1/moderations", response_class=Response, responses=whole(Moderations))
async def create(body: ModerationRequest, request: Request) -> Response:
    service: Service = request.app.state.service
    if body.model is not None:
        check_moderation_model(service, body.model)
    service.metrics.unknown_fields.inc(num_unknown(body.model_extra))
    shows_scores = may_see_scores(request)
    caller = Caller(
        request.state.request_id,
        body.metadata or {},
        body.safety_identifier or body.user or "",
        all_scores=shows_scores,
    )
    conversations = [[{"role": "user", "content": text}] for text in body.texts]
    admitted = await Admission.of(request).scoring(
        "moderations", service.engine.info.model_id, conversations, caller
    )
    return Verdicts(service, admitted, shows_scores=shows_scores)


class Verdicts(GuardedResponse):
    """One result per text. A block is a result here, not an error."""

    def __init__(self, service: Service, admitted: Admitted, *, shows_scores: bool) -> None:
        super().__init__(service, admitted)
        self._shows_scores = shows_scores

    async def _answer(self, events: Events, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._drain(events)
            response = self._whole()
        except Exception as error:  # noqa: BLE001  # whatever was raised, the client gets a well-formed answer
            response = from_failure(error).response(scope["path"])
        response.headers.update(self._guard_headers() | {"x-interlock-action": self._action_so_far()})
        await response(scope, receive, send)

    def _whole(self) -> Response:
        if any(result.unavailable for result in self._results):
            raise unavailable(extra=self._extension("unavailable", Phase.PROMPT))
        try:
            results = [self._verdict(index).body for index in range(len(self._results))]
        except ScoreMissingError as error:
            raise unavailable() from error
        body = {
            "id": f"modr-{self._admitted.decision_id}",
            "model": self._admitted.subject.model,
            "results": results,
            **self._extension_of(self._admitted.choices),
        }
        return Response(orjson.dumps(body), media_type="application/json")

    def _verdict(self, index: int) -> Verdict:
        choice = self._admitted.choices[index]
        if self._shows_scores:
            return verdict(choice, Phase.PROMPT, self._admitted.monitors)
        return plain_verdict(choice, Phase.PROMPT)
