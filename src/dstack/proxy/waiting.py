"""What a request waits for before it goes to a replica: its turn, a service that wakes, its prompt's beginning."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from dstack.proxy.affinity import prompt_key
from dstack.proxy.aim import Aim
from dstack.proxy.balancing import ByPrefix
from dstack.proxy.forward import Exchange
from dstack.proxy.pool import ReplicaTimeout
from dstack.proxy.repo import Service
from dstack.proxy.request_body import BodyTooLarge, RequestBody
from dstack.proxy.waking import StillAsleep


class WaitingExchange(Exchange):
    """From `proceed` on. The client is let in before: `admission`, or whoever makes requests for a client."""

    __slots__ = ()

    def proceed(self, service: Service) -> None:
        """The client may use the service: now, later, or not that often."""
        self._service = service
        limits = service.rate_limits
        if self._request.length > self._deps.max_body_bytes > 0:
            self._refuse(413, str(BodyTooLarge(self._deps.max_body_bytes)))
        elif limits and (seconds := self._seconds_to_wait(service)):
            text = f"Service {self._run} takes no more requests of yours now; try again in {seconds} s"
            self._refuse(429, text, b"Retry-After: %d" % seconds)
        elif service.replicas:
            self._forward()
        else:
            self._started = self._deps.stats.start(service.id)
            self._spawn(self._hold(service))

    def _seconds_to_wait(self, service: Service) -> int:
        limits = service.rate_limits
        return self._deps.limiter.seconds_to_wait(service.id, limits, self._path, self._request, self._hop)

    async def _hold(self, service: Service) -> None:
        """Until the service has a replica."""
        try:
            if self._deps.waking is None:
                raise StillAsleep(f"Service {self._run} has no running replica")
            self._service = await self._deps.waking.until_awake(service)
        except StillAsleep as error:
            self._count(is_error=True)
            self._refuse(503, str(error), b"Retry-After: %d" % error.retry_after_seconds)
        else:
            self._forward()

    def _forward(self) -> None:
        service = self._service
        assert service is not None
        if not self._started:
            self._started = self._deps.stats.start(service.id)
        if service.balancing is None:
            self._send_head()
            return
        aim = self._aim = Aim(self._deps.balancer, service, self._request)
        if isinstance(service.balancing, ByPrefix) and len(service.replicas) > 1 and self._body is not None:
            self._spawn(self._gather(aim, self._body, service.balancing.length))
        else:
            self._send_head()

    async def _gather(self, aim: Aim, body: RequestBody, length: int) -> None:
        """Takes as much of the body as its prompt's beginning needs."""
        if self._request.expects_continue:
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._request = replace(self._request, expects_continue=False, tails={})
        start = body.begin_holding()
        self.is_ready = True
        self._client.on_ready()
        try:
            await asyncio.wait_for(start.is_enough.wait(), self._deps.pool.timeout)
        except asyncio.TimeoutError:
            self._fail(ReplicaTimeout())
            return
        aim.key = prompt_key(b"".join(start.pieces), length)
        self._send_head()
