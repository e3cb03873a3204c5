"""Whether a request to a service is let in: there is such a service, and the client may use it."""

from __future__ import annotations

from collections.abc import Awaitable

from dstack.core.errors import TooManyAttempts
from dstack.proxy.auth import bearer_token
from dstack.proxy.headers import PREFLIGHT_LINES
from dstack.proxy.repo import Service
from dstack.proxy.waiting import WaitingExchange


class AdmittedExchange(WaitingExchange):
    """An exchange that first asks who the service is and who may use it."""

    __slots__ = ()

    def start(self) -> None:
        found = self._deps.repo.find_service(self._project, self._run)
        if found is None or isinstance(found, Service):
            self._admit(found)
        else:
            self._spawn(self._find_then_admit(found))

    async def _find_then_admit(self, finding: Awaitable[Service | None]) -> None:
        self._admit(await finding)

    def _admit(self, service: Service | None) -> None:
        if service is None or not (service.replicas or service.wakes):
            text = f"No running service {self._run} in project {self._project}"
            self._client.send_error(404, text)
            return
        self._service = service
        if service.is_cors_open and self._request.method == b"OPTIONS":
            self._client.send_empty(*PREFLIGHT_LINES)
            return
        if not service.auth:
            self.proceed(service)
            return
        token = bearer_token(self._request.authorization)
        allowed = token is not None and self._deps.auth.is_allowed(
            self._project, token, self._hop.address.decode("ascii")
        )
        if isinstance(allowed, bool):
            self._permit(service, is_allowed=allowed)
        else:
            self._spawn(self._await_permission(service, allowed))

    async def _await_permission(self, service: Service, allowing: Awaitable[bool]) -> None:
        try:
            is_allowed = await allowing
        except TooManyAttempts as error:
            self._refuse(429, str(error), b"Retry-After: %d" % error.retry_after_seconds)
        else:
            self._permit(service, is_allowed=is_allowed)

    def _permit(self, service: Service, *, is_allowed: bool) -> None:
        if is_allowed:
            self.proceed(service)
        else:
            text = (
                f"Service {self._run} needs `Authorization: Bearer` with the token of a member of {self._project}"
            )
            self._refuse(403, text)
