"""What a route demands of its caller, as types of its parameters: exactly one a route, and its first.

A lint rule and a test walk all routes.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.requests import Request

from dstack.core.errors import Forbidden, NotAuthenticated, ProjectNotFound
from dstack.core.projects import ProjectRole
from dstack.server.access import Access, Caller, ProjectAccess
from dstack.server.operations.context import Context, InProject


@dataclass(frozen=True)
class Permission:
    """Marks a dependency as one that decides who may call."""

    name: str
    check: Callable[[Request], Awaitable[Any]]

    async def __call__(self, request: Request) -> Any:
        return await self.check(request)


def context_of(request: Request) -> Context:
    """What the operations work with; put there by `app.build`."""
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(context_of)]


def bearer_token(request: Request) -> str:
    """Raises NotAuthenticated without a header of that kind."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotAuthenticated("Not authenticated")
    return token.strip()


async def identify(request: Request) -> Caller:
    """Whose token it is. Raises NotAuthenticated, Forbidden or, after too many failures, TooManyAttempts."""
    token = bearer_token(request)
    access: Access = context_of(request).access
    caller = await access.authenticate(token)
    if caller is None:
        context_of(request).failed_attempts.count(request.client.host if request.client else "")
        raise Forbidden("Invalid token: nobody has it, or it has expired")
    if caller.token is not None and caller.token.services_only:
        raise Forbidden("Access denied: this token is for services and models only")
    return caller


async def _public(_request: Request) -> None:
    """Anybody, without a token."""


async def _unlimited(request: Request) -> Caller:
    caller = await identify(request)
    if caller.limited_to is not None:
        raise Forbidden("Access denied: this token is for some projects only")
    return caller


async def _first_token(request: Request) -> Caller:
    """What would show or make credentials that outlive a named token."""
    caller = await identify(request)
    if caller.token is not None:
        raise Forbidden("Access denied: this needs your first token, not a named one")
    return caller


async def _ssh_proxy(request: Request) -> None:
    """Its own token, which is a setting."""
    token, wanted = bearer_token(request), context_of(request).settings.sshproxy_token
    if wanted is None:
        raise Forbidden("Access denied: the SSH proxy is not enabled; set DSTACK_SSHPROXY_API_TOKEN")
    if not hmac.compare_digest(token.encode(), wanted.encode()):
        context_of(request).failed_attempts.count(request.client.host if request.client else "")
        raise Forbidden("Access denied: this is not the token of the SSH proxy")


async def _admin(request: Request) -> Caller:
    caller = await identify(request)
    if not caller.is_admin:
        raise Forbidden("Access denied: only admins of the server may do this")
    return caller


async def _project(request: Request) -> tuple[Caller, ProjectAccess, ProjectRole | None]:
    caller = await identify(request)
    name = request.path_params["project_name"]
    has_nul = "\0" in name  # which PostgreSQL refuses to look for
    project = None if has_nul else await context_of(request).access.find_project(name)
    if project is None:
        raise ProjectNotFound(f"Project {name!r} does not exist")
    if not caller.may_see(project):
        raise Forbidden(f"Access denied: this token is not for project {name!r}")
    return caller, project, caller.role_in(project)


def _at_least(*roles: ProjectRole) -> Callable[[Request], Awaitable[InProject]]:
    async def check(request: Request) -> InProject:
        caller, project, role = await _project(request)
        if role is None:
            raise Forbidden(f"Access denied: you are not a member of project {project.name!r}")
        if role not in roles:
            raise Forbidden(f"Access denied: this needs the role {roles[-1].value!r} in project {project.name!r}")
        return InProject(caller, project, role)

    return check


async def _project_or_public(request: Request) -> InProject:
    caller, project, role = await _project(request)
    if role is None and not project.is_public:
        raise Forbidden(f"Access denied: you are not a member of project {project.name!r}")
    return InProject(caller, project, role)


async def _any_of_project(request: Request) -> InProject:
    """The operation decides: joining a public project, leaving any."""
    caller, project, role = await _project(request)
    return InProject(caller, project, role)


async def _secrets(request: Request) -> InProject:
    caller, project, role = await _project(request)
    if not context_of(request).permissions.may_manage_secrets(caller.is_admin, role):
        raise Forbidden(f"Access denied: you may not manage secrets of project {project.name!r}")
    return InProject(caller, project, role)


_ADMIN, _MANAGER, _USER = ProjectRole.ADMIN, ProjectRole.MANAGER, ProjectRole.USER

Public = Annotated[None, Depends(Permission("public", _public))]
Authenticated = Annotated[Caller, Depends(Permission("user", identify))]
Unlimited = Annotated[Caller, Depends(Permission("unlimited user", _unlimited))]
FirstToken = Annotated[Caller, Depends(Permission("first token", _first_token))]
SshProxy = Annotated[None, Depends(Permission("ssh proxy", _ssh_proxy))]
GlobalAdmin = Annotated[Caller, Depends(Permission("global admin", _admin))]
MemberOf = Annotated[InProject, Depends(Permission("project user", _at_least(_ADMIN, _MANAGER, _USER)))]
ManagerOf = Annotated[InProject, Depends(Permission("project manager", _at_least(_ADMIN, _MANAGER)))]
AdminOf = Annotated[InProject, Depends(Permission("project admin", _at_least(_ADMIN)))]
VisitorOf = Annotated[InProject, Depends(Permission("project user or public", _project_or_public))]
CallerOf = Annotated[InProject, Depends(Permission("any user", _any_of_project))]
SecretsOf = Annotated[InProject, Depends(Permission("secrets", _secrets))]


def permission_of(route: APIRoute) -> Permission | None:
    """The route's permission; None when it declares none."""
    found = [d.call for d in route.dependant.dependencies if isinstance(d.call, Permission)]
    return found[0] if len(found) == 1 else None
