"""The operator's actions, on the admin port only."""

from datetime import datetime

from fastapi import APIRouter, Request

from guard.errors import PolicyError
from guard.rules import Rule, Waiver
from monitors.artifacts import ArtifactError
from server.api.errors import Body, bad_request
from server.service import Service

router = APIRouter()


@router.get("/-/policy")
async def show(request: Request) -> Body:
    """The policy in force, as its files and defaults make it; since when; and why what is on disk is not in force."""
    service: Service = request.app.state.service
    store = service.policies
    policy, now = store.current, service.now()
    return {
        "policy": str(policy),
        "digest": policy.digest,
        "files": list(policy.files),
        "loaded": store.loaded.isoformat(),
        "last_error": store.last_error,
        "monitors": {
            "digest": store.in_force.sources.monitors,
            "versions": {monitor.name: monitor.version for monitor in store.in_force.monitors.monitors},
        },
        "rules": [_rule(rule) for rule in policy.rules],
        "exceptions": [_waiver(waiver, now) for waiver in policy.waivers],
    }


def _rule(rule: Rule) -> Body:
    settings = rule.action.model_dump(mode="json", exclude_none=True)
    return {
        "id": rule.id,
        "severity": rule.severity,
        "mode": rule.mode,
        "action": rule.action.kind,
        "when": rule.when,
        "then": {rule.action.kind: settings},
        "on_error": rule.on_error,
        "match": rule.match.model_dump(mode="json", exclude_defaults=True),
        "rollout": rule.rollout and rule.rollout.model_dump(mode="json"),
        "override": rule.override,
        "file": rule.file,
    }


def _waiver(waiver: Waiver, now: datetime) -> Body:
    return {
        "id": waiver.id,
        "rules": list(waiver.rules),
        "mode": waiver.mode,
        "active": (waiver.starts is None or waiver.starts <= now) and now < waiver.expires,
        "expires": waiver.expires.isoformat(),
        "reason": waiver.reason,
        "approved_by": list(waiver.approved_by),
    }


@router.post("/-/reload")
async def reload(request: Request, *, allow_shrink: bool = False) -> Body:
    """Put keys and policy on disk in force: 200 with the new policy, or 400 with what is wrong and the old one kept.

    Keys come first, and a policy that is wrong does not hold them back.
    """
    service: Service = request.app.state.service
    try:
        await service.reload_keys()
        policy = await service.reload_policy(allow_shrink=allow_shrink)
    except (PolicyError, ArtifactError, OSError, ValueError) as error:
        raise bad_request(str(error), code="policy_invalid") from error
    return {"policy": str(policy), "digest": policy.digest}


@router.get("/-/drain")
async def show_drain(request: Request) -> Body:
    """How far the server is on its way out, and how many responses it still holds."""
    service: Service = request.app.state.service
    line = service.line
    return {"phase": service.drain.phase, "running": line.running, "waiting": line.waiting}


@router.post("/-/drain")
async def begin_drain(request: Request) -> Body:
    """Turn not ready, and let what runs come to an end, as SIGTERM does; but the process stays until it is told to end."""
    service: Service = request.app.state.service
    service.drain.begin()
    return await show_drain(request)


@router.get("/-/openapi.json")
async def document(request: Request) -> Body:
    """What the serving port speaks, as an OpenAPI document."""
    told: Body = request.app.state.document()
    return told


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
