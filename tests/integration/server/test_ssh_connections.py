"""The one connection to each host, with a real SSH server on the other side."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncssh
import pytest
from sqlalchemy import select
from tests.fixtures.plain_sshd import Sshd
from tests.fixtures.rows import fleet_row, instance_row, project_row, user_row

from dstack.backends.base import InstanceAddress
from dstack.core.errors import HostKeyChanged, LoginRefused, Unreachable
from dstack.server.db.engine import Database
from dstack.server.db.tables import InstanceRow
from dstack.server.encryption import Encryption, IdentityKey
from dstack.server.hosts.ssh import connecting
from dstack.server.hosts.ssh.hosts import SSHHosts
from dstack.server.hosts.ssh.target import SSHTarget

ENCRYPTION = Encryption([IdentityKey()])


class CountedHosts(SSHHosts):
    """Remembers its connections."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.made: list[asyncssh.SSHClientConnection] = []
        self.attempts = 0

    async def _log_in(self, instance_id: UUID, target: SSHTarget) -> asyncssh.SSHClientConnection:
        self.attempts += 1
        connection = await super()._log_in(instance_id, target)
        self.made.append(connection)
        return connection


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/data.sqlite")
    yield database
    await database.close()


@pytest.fixture
async def all_hosts(tmp_path: Path, database: Database) -> AsyncIterator[CountedHosts]:
    hosts = CountedHosts(database, ENCRYPTION, tmp_path)
    try:
        yield hosts
    finally:
        await hosts.close()
        for connection in hosts.made:
            await connection.wait_closed()


@pytest.fixture
def target(sshd: Sshd) -> SSHTarget:
    return SSHTarget("127.0.0.1", sshd.user, sshd.port, (sshd.identity.read_text(),))


async def add(database: Database, target: SSHTarget, **fields: Any) -> UUID:
    """An instance that is that host."""
    user = user_row(uuid4().hex)
    project = project_row(user, uuid4().hex)
    fleet = fleet_row(project)
    instance = instance_row(fleet, **fields)
    instance.ssh_target = ENCRYPTION.encrypt(target.dump(), f"instances.ssh_target:{instance.id}")
    async with database.transaction() as session:
        for row in (user, project, fleet, instance):
            session.add(row)
            await session.flush()
    return instance.id


async def pins(database: Database, instance_id: UUID) -> tuple[str | None, str | None]:
    """(of the host, of its jump host)."""
    query = select(InstanceRow.host_key, InstanceRow.jump_host_key).where(InstanceRow.id == instance_id)
    async with database.session() as session:
        found = (await session.execute(query)).one()
    return found[0], found[1]


async def test_all_callers_share_one_connection(
    all_hosts: CountedHosts, database: Database, target: SSHTarget
) -> None:
    host = await add(database, target)
    first, second = await asyncio.gather(all_hosts._connect(host), all_hosts._connect(host))
    assert first is second


async def test_who_finds_a_broken_connection_leaves_the_newer_one_alone(
    all_hosts: CountedHosts, database: Database, target: SSHTarget
) -> None:
    host = await add(database, target)
    broken = await all_hosts._connect(host)
    broken.abort()
    await broken.wait_closed()
    newer = await all_hosts._connect(host)
    assert newer is not broken
    all_hosts._drop(host, broken)
    assert await all_hosts._connect(host) is newer
    assert not newer.is_closed()
    all_hosts._drop(host, newer)
    await newer.wait_closed()
    assert await all_hosts._connect(host) is not newer


async def test_who_waits_for_a_host_that_is_let_go_of_is_told(
    all_hosts: CountedHosts, database: Database, target: SSHTarget
) -> None:
    host = await add(database, target)
    waiting = asyncio.ensure_future(all_hosts._connect(host))
    await asyncio.sleep(0)
    await all_hosts.close()
    with pytest.raises(Unreachable, match="let go of"):
        await waiting


@pytest.mark.parametrize(("cool_down_seconds", "attempts"), [(1000.0, 1), (0.0, 3)])
async def test_a_host_that_lets_nobody_in_is_not_connected_to_by_each_caller(
    tmp_path: Path, database: Database, target: SSHTarget, cool_down_seconds: float, attempts: int
) -> None:
    host = await add(database, replace(target, private_keys=()))
    hosts = CountedHosts(database, ENCRYPTION, tmp_path, cool_down_seconds=cool_down_seconds)
    for _ in range(3):
        with pytest.raises(LoginRefused):
            await hosts._connect(host)
    assert hosts.attempts == attempts
    await hosts.close()


async def test_a_host_that_says_nothing_is_waited_for_as_long_as_the_setting_says(target: SSHTarget) -> None:
    async def pin(hop: SSHTarget, key: str) -> None:
        raise AssertionError("nobody has shown a key")

    with socket.socket() as full, contextlib.ExitStack() as callers:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # more than may wait: the next one gets no answer
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        with pytest.raises(Unreachable, match="does not answer"):
            await connecting.connect(replace(target, port=full.getsockname()[1]), pin, connect_seconds=0.2)


@pytest.mark.parametrize(("is_pooled", "attempts"), [(True, 1), (False, 3)])
async def test_calls_share_a_connection_unless_each_is_to_have_its_own(
    tmp_path: Path, database: Database, target: SSHTarget, is_pooled: bool, attempts: int
) -> None:
    host = await add(database, target)
    hosts = CountedHosts(database, ENCRYPTION, tmp_path, is_pooled=is_pooled)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    path = f"/tmp/{uuid4().hex}.sock"
    async with await asyncio.start_unix_server(greet, path):
        address = InstanceAddress(backend_id=str(host), hostname="127.0.0.1", remote_agent_socket=path)
        for _ in range(3):
            reader, writer = await hosts.open(address)
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
        assert hosts.attempts == attempts
        if not is_pooled:
            for connection in hosts.made:
                await connection.wait_closed()
    Path(path).unlink(missing_ok=True)
    await hosts.close()


async def test_b16_the_first_key_of_a_host_is_on_record_and_held_to(
    all_hosts: CountedHosts, database: Database, target: SSHTarget, sshd: Sshd
) -> None:
    host = await add(database, target)
    first = await all_hosts._connect(host)
    assert await pins(database, host) == (connecting.host_key_of(first), None)
    sshd.change_host_key()
    all_hosts._drop(host, first)
    with pytest.raises(HostKeyChanged, match="shows another host key than the one on record"):
        await all_hosts._connect(host)
    assert await pins(database, host) == (connecting.host_key_of(first), None)


async def test_b16_the_key_of_a_jump_host_is_pinned_too(
    all_hosts: CountedHosts, database: Database, target: SSHTarget, sshd: Sshd
) -> None:
    host = await add(database, replace(target, jump=replace(target, hostname="localhost")))
    first = await all_hosts._connect(host)
    key = connecting.host_key_of(first)
    assert await pins(database, host) == (key, key)
    all_hosts._drop(host, first)
    sshd.change_host_key()
    with pytest.raises(HostKeyChanged, match=r"localhost.* shows another host key"):
        await all_hosts._connect(host)


async def test_b16_a_jump_host_that_shows_another_key_than_the_given_one_is_not_gone_through(
    all_hosts: CountedHosts, database: Database, target: SSHTarget, sshd: Sshd
) -> None:
    old = " ".join(sshd.host_key.split()[:2])
    new = sshd.change_host_key()
    host = await add(database, replace(target, jump=replace(target, hostname="localhost", host_key=old)))
    with pytest.raises(HostKeyChanged, match="localhost"):
        await all_hosts._connect(host)
    assert await pins(database, host) == (None, None)
    known = await add(database, replace(target, jump=replace(target, hostname="localhost", host_key=new)))
    await all_hosts._connect(known)
    assert await pins(database, known) == (new, None)


async def test_b16_nothing_is_sent_before_the_key_is_on_record(target: SSHTarget) -> None:
    """Who cannot write it down has no connection; a jump host's comes before anything goes through it."""
    shown: list[SSHTarget] = []

    async def refuse(hop: SSHTarget, key: str) -> None:
        shown.append(hop)
        raise HostKeyChanged("on record is another one")

    jump = replace(target, hostname="localhost")
    with pytest.raises(HostKeyChanged, match="on record is another one"):
        await connecting.connect(replace(target, jump=jump), refuse)
    assert shown == [jump]


async def test_b16_of_two_first_contacts_with_different_keys_only_one_holds(
    all_hosts: CountedHosts, database: Database, target: SSHTarget, sshd: Sshd
) -> None:
    host = await add(database, target)
    not_yet_pinned = await all_hosts.target(host)
    await all_hosts._connect(host)
    sshd.change_host_key()
    with pytest.raises(HostKeyChanged, match="showed two host keys at once"):
        await all_hosts._log_in(host, not_yet_pinned)
