"""GET /v1/models."""

from fastapi import APIRouter, Request

from server.api.errors import Body, model_not_found
from server.service import Service

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Body:
    service: Service = request.app.state.service
    return {"object": "list", "data": [_card(service, name) for name in service.served_models]}


@router.get("/v1/models/{model_id:path}")
async def retrieve(model_id: str, request: Request) -> Body:
    service: Service = request.app.state.service
    if model_id not in service.served_models:
        raise model_not_found("This model does not exist here")
    return _card(service, model_id)


def _card(service: Service, name: str) -> Body:
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "interlock",
        "max_model_len": service.engine.info.max_context,
    }
