"""The HTTP API that the server drives the gateway by, on the loopback (reference/proxy.md, section 4)."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Response
from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from dstack import __version__
from dstack.core.configurations.service import ChatModel, RateLimit
from dstack.proxy.auth import bearer_token
from dstack.proxy.gateway.access_log import AccessLog
from dstack.proxy.gateway.authorize import GatewayAuth
from dstack.proxy.gateway.deps import get_access_log, get_auth, get_registry
from dstack.proxy.gateway.errors import ServerSilent
from dstack.proxy.gateway.models import (
    ACMESettings,
    Entrypoint,
    GatewayModel,
    ModelEntry,
    Project,
    Replica,
    ReplicaPlace,
    Service,
)
from dstack.proxy.gateway.registry import Registry

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,99}$"), AfterValidator(str.lower)]
Domain = Annotated[
    str, StringConstraints(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?$"), AfterValidator(str.lower)
]
Id = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9-]{1,64}$")]
Seconds = Annotated[int, Field(ge=1, le=86400)]

KEEP_REFUSAL_S = 60
"""Of what is no token."""

router = APIRouter()


class Done(BaseModel):
    status: str = "ok"


class OpenAIOptions(GatewayModel):
    model: ChatModel


class Options(GatewayModel):
    openai: OpenAIOptions | None = None


class RegisterService(GatewayModel):
    id: Id
    run_name: Name
    domain: Domain
    https: bool
    auth: bool
    client_max_body_size: int = Field(ge=0)
    options: Options = Options()
    ssh_private_key: str
    rate_limits: tuple[RateLimit, ...] = ()
    has_router_replica: bool = False
    read_timeout: Seconds = 300


class RegisterReplica(ReplicaPlace):
    job_id: Id
    ssh_host: str = ""


class SetId(GatewayModel):
    id: Id


class RegisterEntrypoint(GatewayModel):
    domain: Domain
    https: bool
    read_timeout: Seconds = 300


class Configure(GatewayModel):
    acme_server: str | None = None
    acme_eab_kid: str | None = None
    acme_eab_hmac_key: str | None = None


@router.get("/")
async def get_version() -> dict[str, str]:
    return {"version": __version__}


@router.post("/api/config")
async def configure(body: Configure, registry: Annotated[Registry, Depends(get_registry)]) -> Done:
    acme = ACMESettings(server=body.acme_server, eab_kid=body.acme_eab_kid, eab_hmac_key=body.acme_eab_hmac_key)
    await registry.configure(acme)
    return Done()


@router.get("/api/services/list")
async def list_services(registry: Annotated[Registry, Depends(get_registry)]) -> dict[str, object]:
    return {
        "services": [
            {
                "id": service.id,
                "project_name": service.project_name,
                "run_name": service.run_name,
                "replicas": [{"id": replica.id} for replica in service.replicas],
            }
            for service in registry.list_services()
        ]
    }


@router.post("/api/registry/{project}/services/register")
async def register(
    project: Name, body: RegisterService, registry: Annotated[Registry, Depends(get_registry)]
) -> Done:
    model = body.options.openai.model if body.options.openai else None
    service = Service(
        id=body.id,
        project_name=project,
        run_name=body.run_name,
        domain=body.domain,
        https=body.https,
        rate_limits=body.rate_limits,
        auth=body.auth,
        client_max_body_size=body.client_max_body_size,
        has_router_replica=body.has_router_replica,
        cors_enabled=model is not None and model.format == "openai",
        read_timeout=body.read_timeout,
    )
    models = []
    if model is not None:
        entry = ModelEntry(
            project_name=project,
            name=model.name,
            created_at=time.time(),
            run_name=body.run_name,
            format_spec=model,
        )
        models.append(entry)
    await registry.register(service, Project(name=project, ssh_private_key=body.ssh_private_key), models)
    return Done()


@router.post("/api/registry/{project}/services/{run}/set_id")
async def set_id(
    project: Name, run: Name, body: SetId, registry: Annotated[Registry, Depends(get_registry)]
) -> Done:
    await registry.set_id(project, run, body.id)
    return Done()


@router.post("/api/registry/{project}/services/{run}/unregister")
async def unregister(project: Name, run: Name, registry: Annotated[Registry, Depends(get_registry)]) -> Done:
    await registry.unregister(project, run)
    return Done()


@router.post("/api/registry/{project}/services/{run}/replicas/register")
async def register_replica(
    project: Name, run: Name, body: RegisterReplica, registry: Annotated[Registry, Depends(get_registry)]
) -> Done:
    fields = body.model_dump(exclude={"job_id", "ssh_host"})
    await registry.register_replica(project, run, Replica(id=body.job_id, ssh_destination=body.ssh_host, **fields))
    return Done()


@router.post("/api/registry/{project}/services/{run}/replicas/{replica}/unregister")
async def unregister_replica(
    project: Name, run: Name, replica: Id, registry: Annotated[Registry, Depends(get_registry)]
) -> Done:
    await registry.unregister_replica(project, run, replica)
    return Done()


@router.post("/api/registry/{project}/entrypoints/register")
async def register_entrypoint(
    project: Name, body: RegisterEntrypoint, registry: Annotated[Registry, Depends(get_registry)]
) -> Done:
    entrypoint = Entrypoint(
        project_name=project, domain=body.domain, https=body.https, read_timeout=body.read_timeout
    )
    await registry.register_entrypoint(entrypoint)
    return Done()


@router.get("/api/auth/{project}")
async def authorize(
    project: Name,
    response: Response,
    auth: Annotated[GatewayAuth, Depends(get_auth)],
    authorization: Annotated[str, Header()] = "",
) -> Done:
    """For nginx, which keeps the answer as long as it is told. A server that says nothing is answered 500, which
    lets nobody in."""
    token = bearer_token(authorization.encode("latin-1"))
    is_allowed, keep = False, KEEP_REFUSAL_S
    try:
        if token is not None:
            is_allowed, keep = await auth.admit(project, authorization, token)
    except ServerSilent as error:
        raise HTTPException(500, str(error)) from error
    headers = {"X-Accel-Expires": str(keep)}
    if not is_allowed:
        raise HTTPException(403, f"Services of {project} need the token of a member of the project", headers)
    response.headers.update(headers)
    return Done()


@router.get("/api/stats/collect")
async def collect_stats(
    registry: Annotated[Registry, Depends(get_registry)], access_log: Annotated[AccessLog, Depends(get_access_log)]
) -> list[dict[str, object]]:
    return [
        {
            "project_name": service.project_name,
            "run_name": service.run_name,
            "stats": {
                str(window): {"requests": stats.requests, "request_time": stats.request_time}
                for window, stats in access_log.stats(service.domain).items()
            },
        }
        for service in registry.list_services()
    ]
