"""Probes against a real replica, and what becomes of their results."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.fixtures.rows import fleet_row, instance_row, job_row, project_row, run_row, user_row

from dstack.core.canonical import dump_json
from dstack.core.configurations import parse_run_configuration
from dstack.core.images import Images
from dstack.core.job_specs import make_job_specs
from dstack.core.jobs import JobSpec, ProbeSpec
from dstack.core.runs import RunSpec
from dstack.proxy.repo import Service
from dstack.server.db.engine import Database
from dstack.server.db.tables import JobRow
from dstack.server.hosts.probes import Prober, is_successful, listens
from dstack.server.hosts.replicas import ReplicaDialer
from dstack.server.proxy.repo import ServerProxyRepo

LOCAL = ReplicaDialer()


@dataclass
class Replica:
    """Answers with `status`, or not at all (0)."""

    status: int = 200
    head: bytes = b""
    body: bytes = b""
    count: int = 0
    address: str = ""
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A prober that waited long enough goes away in the middle."""
        with contextlib.suppress(EOFError, ConnectionError), contextlib.closing(writer):
            await self._answer(reader, writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = await reader.readuntil(b"\r\n\r\n")
        if b"Content-Length: " in self.head:
            length = int(self.head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
            self.body = await reader.readexactly(length)
        self.count += 1
        self.asked.set()
        if self.status:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 %d X\r\nLocation: /ok\r\n\r\n" % self.status)
        else:
            await reader.read()


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    replica = Replica()
    server = await asyncio.start_server(replica.handle, "127.0.0.1", 0)
    replica.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield replica


def probe(**fields: Any) -> ProbeSpec:
    values = {"type": "http", "url": "/", "timeout": 1, "interval": 1, "ready_after": 1}
    return ProbeSpec.model_validate(values | fields)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, True), (204, True), (299, True), (301, False), (404, False), (500, False), (0, False)],
)
async def test_success_is_2xx_in_time(replica: Replica, status: int, expected: bool) -> None:
    replica.status = status
    assert await is_successful(probe(), LOCAL, replica.address) is expected


async def test_a_replica_that_is_not_there_fails(tmp_path: Any) -> None:
    assert not await is_successful(probe(), LOCAL, f"unix:{tmp_path}/none.sock")


async def test_the_request_is_what_the_configuration_says(replica: Replica) -> None:
    headers = [{"name": "X-One", "value": "1"}, {"name": "User-Agent", "value": "me"}]
    asked = probe(url="/ready?x=1", method="post", headers=headers, body='{"a": "ü"}')
    assert await is_successful(asked, LOCAL, replica.address)
    lines = replica.head.decode().split("\r\n")
    assert lines[0] == "POST /ready?x=1 HTTP/1.1"
    assert {"Host: dstack", "X-One: 1", "User-Agent: me", "Content-Length: 11"} <= set(lines)
    assert replica.body.decode() == '{"a": "ü"}'


async def test_a_port_is_listened_on_when_connections_are_kept(replica: Replica, tmp_path: Any) -> None:
    """A forwarder without anybody behind it takes connections and closes them."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:
        assert not await listens(LOCAL, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert not await listens(LOCAL, f"unix:{tmp_path}/none.sock")
    assert await listens(LOCAL, replica.address)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    while not await holds():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def spec_with(*probes: ProbeSpec) -> JobSpec:
    configuration = parse_run_configuration({"type": "service", "name": "web", "port": 80, "commands": ["x"]})
    [spec] = make_job_specs(RunSpec(configuration=configuration), run_name="web", images=Images())
    return spec.model_copy(update={"probes": list(probes)})


async def test_b6_a_replica_that_fails_leaves_the_balancing_but_never_the_last_one(database: Database) -> None:
    """Two replicas, each with a probe; both are ready, then the first fails, then both."""
    user = user_row()
    project = project_row(user)
    service_spec = json.dumps({"url": "/proxy/services/main/web/"})
    run_spec = json.dumps({"configuration": {"type": "service"}})
    run = run_row(project, user, "web", run_spec=run_spec, service_spec=service_spec, status="running")
    fleet = fleet_row(project)
    instance = instance_row(fleet)
    replicas = [Replica(), Replica()]
    servers = [await asyncio.start_server(one.handle, "127.0.0.1", 0) for one in replicas]
    rows: list[JobRow] = []
    for number, server in enumerate(servers):
        replicas[number].address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        fields = {
            "status": "running", "registered": True, "replica_num": number, "instance_id": instance.id,
            "service_address": replicas[number].address, "job_spec": dump_json(spec_with(probe())),
            "probe_streaks": "[0]", "healthy": False,
        }  # fmt: skip
        rows.append(job_row(run, **fields))
    async with database.transaction() as session:
        for batch in ([user], [project], [fleet], [instance], [run], rows):
            session.add_all(batch)
            await session.flush()
    repo = ServerProxyRepo(database)
    prober = Prober(database, lambda: {instance.id: ""}, LOCAL)
    prober.start()

    async def balanced() -> tuple[str, ...]:
        found = repo.find_service("main", "web")
        service = found if found is None or isinstance(found, Service) else await found
        assert service is not None
        return service.replicas

    async def streaks(number: int) -> int:
        async with database.session() as session:
            row = await session.get_one(JobRow, rows[number].id)
            return int(json.loads(row.probe_streaks or "[0]")[0])

    both = (replicas[0].address, replicas[1].address)
    try:
        for number in (0, 1):
            await until(functools.partial(_exceeds, streaks, number, 1))
        await until(lambda: _is(balanced, both))
        replicas[0].status = 503
        await until(lambda: _is(balanced, both[1:]))
        await until(lambda: _falls(streaks, 0))
        replicas[1].status = 0
        await until(lambda: _is(balanced, both))
        replicas[0].status = 200
        await until(lambda: _is(balanced, both[:1]))
    finally:
        await prober.stop()
        repo.close()
        for server in servers:
            server.close()


async def _is(ask: Callable[[], Awaitable[tuple[str, ...]]], expected: tuple[str, ...]) -> bool:
    return await ask() == expected


async def _exceeds(ask: Callable[[int], Awaitable[int]], number: int, bound: int) -> bool:
    return await ask(number) > bound


async def _falls(ask: Callable[[int], Awaitable[int]], number: int) -> bool:
    return await ask(number) == 0


async def test_probing_ends_once_ready_where_that_is_asked_for(database: Database, replica: Replica) -> None:
    user = user_row()
    project = project_row(user)
    run = run_row(project, user, "web")
    fleet = fleet_row(project)
    instance = instance_row(fleet)
    job = job_row(
        run, id=uuid.uuid4(), status="running", instance_id=instance.id, service_address=replica.address,
        job_spec=dump_json(spec_with(probe(ready_after=2, until_ready=True))), probe_streaks="[0]",
    )  # fmt: skip
    async with database.transaction() as session:
        for batch in ([user], [project], [fleet], [instance], [run], [job]):
            session.add_all(batch)
            await session.flush()
    heard: list[str] = []
    database.wakeups.listen(heard.append)
    prober = Prober(database, lambda: {instance.id: ""}, LOCAL)
    prober.start()

    async def is_told() -> bool:
        return f"job:{job.id}" in heard

    await until(is_told)
    assert replica.count == 2
    replica.asked.clear()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(replica.asked.wait(), 1.5)
    await prober.stop()
