"""Health, version, metrics."""

from importlib.metadata import version

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from server.api.described import NO_BODY, TEXT
from server.api.errors import Body
from server.service import Service

router = APIRouter()
metrics_router = APIRouter()

_STALLED_S = 30.0  # one step takes that long: the model hangs


@router.head("/health", response_class=Response, responses=NO_BODY)
@router.get("/health", response_class=Response, responses=NO_BODY)
async def health(request: Request) -> Response:
    """200 with an empty body, or 503: the engine has ended, hangs in a step, or fails its canaries.

    A decision log that can't be written is told in a header: restarting the server would not cure it.
    """
    service: Service = request.app.state.service
    trouble = service.audit.trouble if service.audit is not None else None
    headers = {"x-interlock-note": f"decision log: {trouble}"} if trouble else {}
    return Response(status_code=200 if _is_healthy(service) else 503, headers=headers)


@router.get("/ping", response_class=Response, responses=NO_BODY)
@router.post("/ping", response_class=Response, responses=NO_BODY)
async def ping(request: Request) -> Response:
    return await health(request)


@router.get("/version")
async def get_version() -> Body:
    return {"version": version("interlock")}


@metrics_router.get("/metrics", response_class=Response, responses=TEXT)
async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _is_healthy(service: Service) -> bool:
    if service.canary is not None and service.canary.refuses:
        return False
    return service.engine.is_alive and service.engine.load().step_age_s < _STALLED_S
