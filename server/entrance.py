"""Whether a request may come in, and when: the server takes requests, its key's limits hold, and its turn has come."""

from collections.abc import Collection

from guard.decider import Decider
from guard.types import Phase
from server.api.errors import ApiError, client_gone, draining, overloaded, unavailable
from server.keys.types import Client
from server.limits.gate import refusals_as_answers
from server.prompts import check_model
from server.scheduling.turn import Turn
from server.scheduling.types import ClientGoneError, TurnedAwayError
from server.service import Service


class Entrance:
    """Of one request: `check` before anything is done for it, then `reserve`, then `enter`."""

    def __init__(self, service: Service, client: Client, turn: Turn) -> None:
        self._service = service
        self._client = client
        self._turn = turn

    def check(self, endpoint: str, model: str, num_unknown_fields: int = 0) -> None:
        """What is cheap to know, before anything is tokenised. Raises ApiError."""
        service = self._service
        if service.drain.refuses:
            service.metrics.shed.labels("draining").inc()
            raise draining()
        check_model(service, model)
        try:
            self._turn.check()
        except TurnedAwayError as error:
            raise self._turned_away(endpoint, error) from error
        self._check_guard()
        service.metrics.unknown_fields.inc(num_unknown_fields)

    def _check_guard(self) -> None:
        service = self._service
        if service.pulse.trouble:
            service.metrics.shed.labels("engine").inc()
            service.metrics.failures.labels("engine", "closed").inc()
            raise unavailable("The model is not running.")
        if service.audit is not None and service.audit.refuses:
            service.metrics.shed.labels("audit_unwritable").inc()
            service.metrics.failures.labels("audit", "closed").inc()
            raise unavailable("Decisions can't be recorded at the moment, so requests are refused.")
        if service.canary is not None and service.canary.refuses:
            service.metrics.shed.labels("canary").inc()
            service.metrics.failures.labels("canary", "closed").inc()
            raise unavailable(
                "Monitors do not give the scores they were calibrated with, so requests are refused."
            )

    async def enter(self, endpoint: str, size: int) -> None:
        """Stand in line. Raises ApiError."""
        metrics = self._service.metrics
        try:
            waited_s = await self._turn.enter(size)
        except TurnedAwayError as error:
            raise self._turned_away(endpoint, error) from error
        except ClientGoneError as error:
            metrics.disconnects.inc()
            metrics.requests.labels(metrics.model, endpoint, "cancelled").inc(size)
            raise client_gone() from error
        metrics.queue.labels(metrics.model).observe(waited_s)
        self._check_guard()  # it may have waited for long

    def check_monitors(self, decider: Decider, shed: frozenset[str], phases: Collection[Phase]) -> None:
        """Before anything runs in these phases: refuse where a monitor whose breaker is open is one that `decider` can't do without. Raises ApiError."""
        if decider.fails_without(shed, phases):
            self._service.metrics.shed.labels("breaker").inc()
            self._service.metrics.failures.labels("monitor", "closed").inc()
            raise unavailable()

    def _turned_away(self, endpoint: str, error: TurnedAwayError) -> ApiError:
        metrics = self._service.metrics
        metrics.shed.labels(error.reason).inc()
        metrics.requests.labels(metrics.model, endpoint, "shed").inc()
        return draining() if error.reason == "draining" else overloaded(error.retry_after_s)

    async def reserve(self, num_prompt: int, num_response: int) -> None:
        """Take tokens from the client's limits. Raises ApiError."""
        with refusals_as_answers(self._service.metrics):
            await self._client.allowance.take_tokens(num_prompt, num_response)
