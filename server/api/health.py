"""Health, probes, version, metrics."""

from importlib.metadata import version

from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from server.api.described import NO_BODY, PROBE, TEXT
from server.api.errors import Body
from server.drain import DrainPhase
from server.readiness import Check, checks, report
from server.service import Service

router = APIRouter()
metrics_router = APIRouter()


@router.get("/health", response_class=Response, responses=NO_BODY)
@router.head("/health", include_in_schema=False)
async def health(request: Request) -> Response:
    """For clients of vLLM: 200 with an empty body, or 503: the engine has ended, makes no progress, or fails its canaries.

    A decision log that can't be written is told in a header: restarting the server would not cure it.
    """
    service: Service = request.app.state.service
    trouble = service.audit.trouble if service.audit is not None else None
    headers = {"x-interlock-note": f"decision log: {trouble}"} if trouble else {}
    return Response(status_code=200 if _is_healthy(service) else 503, headers=headers)


@router.api_route("/ping", methods=["GET", "POST"], include_in_schema=False)
async def ping(request: Request) -> Response:
    return await health(request)


@router.get("/livez", response_class=Response, responses=PROBE)
async def livez(request: Request) -> Response:
    """503 where only a restart helps: the engine has been dead, or has owed somebody a step, for twice `step_timeout_s`."""
    service: Service = request.app.state.service
    pulse = service.pulse
    was_ended = service.drain.phase is DrainPhase.OVER  # on purpose
    return report(Check("engine", was_ended or not pulse.is_hopeless, pulse.trouble))


@router.get("/readyz", response_class=Response, responses=PROBE)
async def readyz(request: Request) -> Response:
    """503 where no requests should be sent here for now, with why."""
    service: Service = request.app.state.service
    return report(*checks(service))


@router.get("/startupz", response_class=Response, responses=PROBE)
async def startupz() -> Response:
    """There is an application to answer this only once the model and the policy are loaded (see `server/loading.py`)."""
    return report(Check("model"))


@router.get("/version")
async def get_version() -> Body:
    return {"version": version("interlock")}


@router.get("/load")
async def load(request: Request) -> Body:
    """As vLLM tells it: responses that run or wait."""
    service: Service = request.app.state.service
    held = service.engine.load()
    return {"server_load": held.running + held.waiting + service.line.waiting}


@metrics_router.get("/metrics", response_class=Response, responses=TEXT)
async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    encoded, media_type = choose_encoder(request.headers.get("accept", ""))  # exemplars need OpenMetrics
    return Response(encoded(service.metrics.registry), media_type=media_type)


def _is_healthy(service: Service) -> bool:
    if service.canary is not None and service.canary.refuses:
        return False
    return not service.pulse.trouble
