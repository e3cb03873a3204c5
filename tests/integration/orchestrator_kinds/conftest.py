"""`control`: the loop with all kinds on a real database, a log store, watchers, and this machine as a backend."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from sqlalchemy import select, update

from dstack.backends.registry import BackendContext
from dstack.core.canonical import dump_json
from dstack.core.configurations import parse_run_configuration
from dstack.core.configurations.fleet import FleetConfiguration
from dstack.core.configurations.profiles import Profile
from dstack.core.cron import next_trigger
from dstack.core.fleets import FleetSpec
from dstack.core.images import Images
from dstack.core.job_specs import effective_run_spec, make_job_specs
from dstack.core.runs import RunSpec
from dstack.server import clock
from dstack.server.configured_backends import ConfiguredBackends
from dstack.server.db.engine import Database, wake
from dstack.server.db.tables import BackendRow, FleetRow, InstanceRow, JobRow, ProjectRow, RunRow, UserRow
from dstack.server.encryption import Encryption, IdentityKey
from dstack.server.gateways.hosts import GatewayHosts
from dstack.server.hosts.connections import Agents
from dstack.server.hosts.pool import WatcherPool
from dstack.server.hosts.ssh.hosts import SSHHosts
from dstack.server.hosts.watcher import WatchContext
from dstack.server.orchestrator.engine import Engine
from dstack.server.orchestrator.kinds import kinds
from dstack.server.orchestrator.world import World
from dstack.server.planning.new_run import job_values
from dstack.server.stores.logs.base import Frame, LogKey, LogQuery
from dstack.server.stores.logs.files import FileLogStore

WITHIN_SECONDS = 20


class Sink:
    """The log store as the watchers see it."""

    def __init__(self, store: FileLogStore) -> None:
        self._store = store

    async def position(self, project_name: str, run_name: str, job_id: UUID) -> int:
        return await self._store.position(LogKey(project_name, run_name, job_id))

    async def append(
        self, project_name: str, run_name: str, job_id: UUID, frames: Sequence[Frame], end_offset: int
    ) -> None:
        await self._store.append(LogKey(project_name, run_name, job_id), frames, end_offset)


class Control:
    """What a test does with it."""

    def __init__(self, database: Database, folder: Path, backend: dict[str, Any]) -> None:
        self.database = database
        self.folder = folder
        self.backend = backend
        self.project_id = uuid.uuid4()
        self.user_id = uuid.uuid4()
        self.encryption = Encryption([IdentityKey()])

    async def start(self) -> None:
        self.ssh_hosts = SSHHosts(self.database, self.encryption, self.folder / "hosts")
        self.gateway_hosts = GatewayHosts(self.database, self.encryption)
        self.agents = Agents(self.ssh_hosts)
        self.logs = FileLogStore(self.folder / "logs")
        self.backends = ConfiguredBackends(self.database, self.encryption, BackendContext(self.folder / "hosts"))
        self.world = World(
            database=self.database,
            wakeups=self.database.wakeups,
            backends=self.backends,
            agents=self.agents,
            ssh_hosts=self.ssh_hosts,
            gateway_hosts=self.gateway_hosts,
            log_store=self.logs,
            encryption=self.encryption,
            images=Images(),
            clock=clock.now,
        )
        self.engine = Engine(self.database, kinds(self.world.images), self.world)
        context = WatchContext(self.database, Sink(self.logs), clock.now, self.ssh_hosts.archive)
        self.pool = WatcherPool(str(uuid.uuid4()), self.agents, context)
        self.pool.start()
        await self.engine.start()

    async def stop(self) -> None:
        """Agents and their tasks live on."""
        await self.engine.stop()
        await self.pool.stop()
        await self.agents.close()
        await self.ssh_hosts.close()
        self.backends.close()
        await self.logs.close()

    async def prepare(self, **fleet: Any) -> None:
        """A project with the backend and a fleet on it."""
        now = clock.now()
        user = UserRow(id=self.user_id, name="u", global_role="admin", created_at=now, token="", token_hash="h")
        project = ProjectRow(
            id=self.project_id,
            name="main",
            owner_id=self.user_id,
            created_at=now,
            ssh_private_key="",
            ssh_public_key="",
            status="active",
            last_processed_at=now,
        )
        backend_id = uuid.uuid4()
        backend = BackendRow(
            id=backend_id,
            project_id=self.project_id,
            type=self.backend["type"],
            config=json.dumps(self.backend),
            auth=self.encryption.encrypt("null", f"backends.auth:{backend_id}"),
            created_at=now,
        )
        configuration = {"type": "fleet", "name": "f", "nodes": "0..", **fleet}
        spec = FleetSpec(
            configuration=FleetConfiguration.model_validate(configuration), profile=Profile(name="default")
        )
        async with self.database.transaction() as session:
            session.add(user)
            await session.flush()
            session.add(project)
            await session.flush()
            session.add(backend)
            session.add(
                FleetRow(
                    id=uuid.uuid4(),
                    project_id=self.project_id,
                    name="f",
                    spec=dump_json(spec),
                    created_at=now,
                    last_processed_at=now,
                    status="active",
                )
            )

    async def submit(self, name: str, *, project_id: Any = None, **configuration: Any) -> UUID:
        """The rows that an operation writes, and the wake-ups. `project_id`: of another project than the first."""
        project_id = project_id or self.project_id
        parsed = parse_run_configuration({"type": "task", "name": name, **configuration})
        spec = effective_run_spec(RunSpec(configuration=parsed), run_name=name, ssh_key_pub="key")
        now, run_id = clock.now(), uuid.uuid4()
        run = RunRow(
            id=run_id,
            project_id=project_id,
            user_id=self.user_id,
            run_name=name,
            submitted_at=now,
            last_processed_at=now,
            run_spec=dump_json(spec),
            priority=spec.configuration.priority or 0,
            status="submitted" if parsed.schedule is None else "pending",
            next_triggered_at=None if parsed.schedule is None else next_trigger(parsed.schedule.cron, now),
        )
        specs = [
            (uuid.uuid4(), job)
            for job in make_job_specs(spec, run_name=name, images=Images())
            if parsed.schedule is None
        ]
        jobs = job_values(specs, run_id=run_id, project_id=project_id, now=now, priority=run.priority)
        async with self.database.transaction() as session:
            session.add(run)
            await session.flush()
            session.add_all([JobRow(**values) for values in jobs])
            wake(session, f"run:{run_id}", f"placement:{project_id}")
            wake(session, *(f"job:{values['id']}" for values in jobs))
        return run_id

    async def request_stop(self, run_id: UUID, reason: str = "stopped_by_user") -> None:
        async with self.database.transaction() as session:
            await session.execute(update(RunRow).where(RunRow.id == run_id).values(stop_requested=reason))
            wake(session, f"run:{run_id}")

    async def run(self, run_id: UUID) -> RunRow:
        async with self.database.session() as session:
            return (await session.execute(select(RunRow).where(RunRow.id == run_id))).scalar_one()

    async def jobs(self, run_id: UUID) -> list[JobRow]:
        query = select(JobRow).where(JobRow.run_id == run_id)
        async with self.database.session() as session:
            return list(await session.scalars(query.order_by(JobRow.submission_num, JobRow.job_num)))

    async def instances(self) -> list[InstanceRow]:
        async with self.database.session() as session:
            return list(await session.scalars(select(InstanceRow).order_by(InstanceRow.created_at)))

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str) -> None:
        """Looks after each wake-up, and now and then."""
        changed = asyncio.Event()
        deaf = self.database.wakeups.listen(lambda _: changed.set())
        deadline = asyncio.get_running_loop().time() + WITHIN_SECONDS
        try:
            while not await holds():
                assert asyncio.get_running_loop().time() < deadline, f"{what} did not happen; {await self.story()}"
                changed.clear()
                try:
                    await asyncio.wait_for(changed.wait(), 0.2)
                except (asyncio.TimeoutError, TimeoutError):
                    continue
        finally:
            deaf()

    async def until_status(self, run_id: UUID, *statuses: str) -> RunRow:
        async def holds() -> bool:
            return (await self.run(run_id)).status in statuses

        await self.until(holds, f"run in {statuses}")
        return await self.run(run_id)

    async def story(self) -> str:
        async with self.database.session() as session:
            runs = [(row.run_name, row.status) for row in await session.scalars(select(RunRow))]
            jobs = [
                (row.job_name, row.status, row.capacity_error, row.last_error, row.task_state, row.logs_stored)
                for row in await session.scalars(select(JobRow))
            ]
            instances = [
                (row.name, row.status, row.offer is not None, row.address, row.agent_info, row.last_error)
                for row in await session.scalars(select(InstanceRow))
            ]
        return f"runs {runs} jobs {jobs} instances {instances}"

    async def output(self, run_name: str, job_id: UUID) -> str:
        page = await self.logs.poll(LogKey("main", run_name, job_id), LogQuery())
        return "".join(base64.b64decode(line.message).decode() for line in page.logs)


@pytest.fixture
async def control(database: Database, tmp_path: Path) -> AsyncIterator[Control]:
    control = Control(database, tmp_path, {"type": "local"})
    await control.start()
    yield control
    await control.stop()
    end_agents(tmp_path)


def end_agents(folder: Path) -> None:
    """Ends the agents of this folder, and what they started."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "dstack.agent" in command and any(str(folder) in part for part in command):
            found += [process, *process.children(recursive=True)]
    for process in found:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found, timeout=10)
