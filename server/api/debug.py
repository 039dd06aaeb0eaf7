"""What an operator wants to see at night, on the admin port only: what the server holds, waits for and was started with. No text of anybody's."""

import asyncio
import os
import threading
from dataclasses import asdict
from importlib.metadata import version

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from server.api.described import TEXT
from server.api.errors import Body
from server.readiness import checks
from server.service import Service
from server.stacks import stacks

router = APIRouter()


@router.get("/debug")
async def overview(request: Request) -> Body:
    """The state of every part, in one page."""
    service: Service = request.app.state.service
    pulse = service.pulse
    return {
        "version": version("interlock"),
        "pid": os.getpid(),
        "up_s": int(service.now().timestamp()) - service.started,
        "ready": [check.body for check in checks(service)],
        "drain": service.drain.phase,
        "engine": {
            **asdict(service.engine.info),
            "alive": pulse.is_alive,
            "silent_s": round(pulse.silent_s, 3),
            **asdict(service.engine.load()),
        },
        "line": {
            "running": service.line.running,
            "waiting": service.line.waiting,
            "tenants": {
                name: {"running": running, "waiting": waiting}
                for name, (running, waiting) in service.line.tenants.items()
            },
        },
        "policy": str(service.policies.current),
        "monitors": [monitor.name for monitor in service.engine.monitors],
        "second_opinions": service.second_opinions.breakers,
        "audit_queued": service.audit.queued if service.audit is not None else None,
        "keys": service.keys.num_keys if service.keys is not None else None,
        "tasks": len(asyncio.all_tasks()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "settings": service.settings,
    }


@router.get("/debug/stacks", response_class=Response, responses=TEXT)
async def show_stacks() -> PlainTextResponse:
    """Where every thread and every task stands."""
    return PlainTextResponse(stacks())
