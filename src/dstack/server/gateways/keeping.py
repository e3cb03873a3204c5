"""One connection to a machine of a gateway, kept: the way there for the server, the way back for the gateway."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import update

from dstack.core.errors import DstackError, Unreachable
from dstack.proxy.stats import WINDOWS, Counts
from dstack.server import clock
from dstack.server.db.engine import Database
from dstack.server.db.queries import loads
from dstack.server.db.queries.gateways import RunningReplica
from dstack.server.db.tables import GatewayReplicaRow
from dstack.server.gateways.client import GatewayClient, Usage
from dstack.server.gateways.hosts import GatewayHosts, Ready
from dstack.server.gateways.syncing import GatewaySync
from dstack.server.gateways.wanted import Terms, WantedService, wanted_services
from dstack.server.gateways.ways import Forwards, ProjectKeys
from dstack.server.hosts.ssh import connecting

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""Usage is fetched so often, and a connection that is silent found."""
SYNC_EVERY_S = 15.0
BACK_OFF_S = (1.0, 2.0, 5.0, 10.0, 15.0)


@dataclass(frozen=True)
class AuthorityTerms:
    """The certificate authority that gateways ask; all None: Let's Encrypt."""

    acme_server: str | None = None
    eab_kid: str | None = None
    eab_hmac_key: str | None = None


@dataclass(frozen=True)
class Keeping:
    """What all keepers share. `server_address`: where this server's API is reached from this machine."""

    database: Database
    hosts: GatewayHosts
    keys: ProjectKeys
    server_address: tuple[str, int]
    terms: Terms
    authority: AuthorityTerms
    now: Callable[[], datetime]


class GatewayKeeper:
    """Runs until it is cancelled. `look()` has it compare at once."""

    def __init__(self, replica: RunningReplica, shared: Keeping) -> None:
        self._replica = replica
        self._shared = shared
        self._since = shared.now()
        self._changed = asyncio.Event()
        self._usage: dict[UUID, Mapping[int, Counts]] = {}
        self.failures: dict[UUID, str] | None = None
        """Why services are not published here, by run; None while there is no connection."""

    def look(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        failed = 0
        while True:
            try:
                ready = await self._shared.hosts.ready(self._replica.id)
                try:
                    await self._tell(None)
                    failed = 0
                    await self._serve(ready)
                finally:
                    self.failures = None
                    connecting.close(ready.connection)
            except DstackError as error:
                logger.warning("gateway replica %s: %s", self._replica.id, error)
                await self._tell(f"Not connected: {error}")
            except Exception:
                logger.exception("gateway replica %s: its connection failed", self._replica.id)
            await asyncio.sleep(BACK_OFF_S[min(failed, len(BACK_OFF_S) - 1)])
            failed += 1

    async def _tell(self, message: str | None) -> None:
        """Shown with the machine. A database that is away is told of elsewhere."""
        row = GatewayReplicaRow
        own = update(row).where(row.id == self._replica.id, row.status_message.is_distinct_from(message))
        try:
            async with self._shared.database.transaction() as session:
                await session.execute(own.values(status_message=message))
        except DstackError as error:
            logger.warning("gateway replica %s: %s", self._replica.id, error)

    async def _serve(self, ready: Ready) -> None:
        """Until the connection breaks. Raises Unreachable then."""
        client = GatewayClient(ready.connection)
        authority = self._shared.authority
        forwards = Forwards(ready.connection, ready.target)
        async with connecting.translated(ready.target):
            path = f"{ready.host.folder}/server-connections/{uuid.uuid4()}.sock"
            await ready.connection.forward_remote_path_to_port(path, *self._shared.server_address)
        await client.configure(authority.acme_server, authority.eab_kid, authority.eab_hmac_key)
        sync = GatewaySync(ready.target.hostname, client, self._shared.keys, forwards)
        synced_at = float("-inf")
        wanted: list[WantedService] = []
        loop = asyncio.get_running_loop()
        while True:
            if self._changed.is_set() or loop.time() - synced_at >= SYNC_EVERY_S:
                self._changed.clear()
                wanted = await self._wanted()
                await sync.sync(wanted)
                self.failures = sync.failures
                synced_at = loop.time()
            await self._report(await client.usage(), wanted)
            await clock.happens_within(self._changed, LOOK_EVERY_S)
            if ready.connection.is_closed():
                raise Unreachable(f"The connection to {ready.target} broke")

    async def _wanted(self) -> list[WantedService]:
        async with self._shared.database.session() as session:
            return await wanted_services(session, self._replica.gateway_id, self._shared.terms)

    async def _report(self, usage: list[Usage], wanted: list[WantedService]) -> None:
        """For scaling: in the place that the in-server proxy tells its counts in."""
        runs = {service.name: service.run_id for service in wanted}
        seen = {runs[one.project, one.run]: one.windows for one in usage if (one.project, one.run) in runs}
        changed = [run_id for run_id, windows in seen.items() if self._usage.get(run_id) != windows]
        self._usage = seen
        if not seen:
            return
        own = {"server": self._replica.id, "since": self._since, "written_at": self._shared.now()}
        rows = [{"run_id": run_id, **own, **_columns(windows)} for run_id, windows in seen.items()]
        async with self._shared.database.transaction() as session:
            await loads.write(session, rows)
        self._shared.database.wakeups.publish(f"run:{run_id}" for run_id in changed)


def _columns(windows: Mapping[int, Counts]) -> dict[str, Any]:
    """What is on its way a gateway does not tell."""
    counts = {f"requests_{window}": windows[window].requests for window in WINDOWS}
    told = json.dumps({window: counts.dump() for window, counts in windows.items()})
    return {**counts, "in_flight": 0, "replicas": "{}", "windows": told}
