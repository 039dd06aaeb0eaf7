"""The operator's actions, on the admin port only."""

from fastapi import APIRouter, Request

from guard.errors import PolicyError
from monitors.artifacts import ArtifactError
from server.api.errors import Body, bad_request
from server.service import Service

router = APIRouter()


@router.get("/-/policy")
async def show(request: Request) -> Body:
    """The policy in force."""
    service: Service = request.app.state.service
    policy = service.policies.current
    return {
        "policy": str(policy),
        "digest": policy.digest,
        "files": list(policy.files),
        "rules": [{"id": rule.id, "mode": rule.mode, "action": rule.action.kind} for rule in policy.rules],
    }


@router.post("/-/reload")
async def reload(request: Request, *, allow_shrink: bool = False) -> Body:
    """Put the policy on disk in force: 200 with the new one, or 400 with everything that is wrong and the old one kept."""
    service: Service = request.app.state.service
    try:
        policy = await service.reload_policy(allow_shrink=allow_shrink)
    except (PolicyError, ArtifactError, OSError, ValueError) as error:
        raise bad_request(str(error), code="policy_invalid") from error
    return {"policy": str(policy), "digest": policy.digest}


@router.get("/-/audit")
async def audit(request: Request) -> Body:
    """The state of the decision log."""
    service: Service = request.app.state.service
    log = service.audit
    if log is None:
        return {"enabled": False}
    return {
        "enabled": True,
        "on_full": log.settings.on_full,
        "trouble": log.trouble,
        "refuses_requests": log.refuses,
        "queued": log.queued,
        "last_write_age_s": round(log.last_write_age_s, 3),
    }
