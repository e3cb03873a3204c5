"""The one connection to each host, with a real SSH server on the other side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import asyncssh
import pytest
from tests.fixtures.plain_sshd import Sshd

from dstack.core.errors import Unreachable
from dstack.server.db.engine import Database
from dstack.server.encryption import Encryption, IdentityKey
from dstack.server.hosts.ssh.hosts import SSHHosts
from dstack.server.hosts.ssh.target import SSHTarget

HOST = uuid4()


class OneHost(SSHHosts):
    """All instances are the same host."""

    where: SSHTarget
    made: list[asyncssh.SSHClientConnection]

    async def target(self, instance_id: UUID) -> SSHTarget:
        return self.where

    async def _log_in(self, instance_id: UUID) -> asyncssh.SSHClientConnection:
        connection = await super()._log_in(instance_id)
        self.made.append(connection)
        return connection


@pytest.fixture
async def hosts(tmp_path: Path, sshd: Sshd) -> AsyncIterator[OneHost]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/data.sqlite")
    hosts = OneHost(database, Encryption([IdentityKey()]), tmp_path)
    hosts.where, hosts.made = SSHTarget("127.0.0.1", sshd.user, sshd.port, (sshd.identity.read_text(),)), []
    try:
        yield hosts
    finally:
        await hosts.close()
        for connection in hosts.made:
            await connection.wait_closed()
        await database.close()


async def test_all_callers_share_one_connection(hosts: OneHost) -> None:
    first, second = await asyncio.gather(hosts._connect(HOST), hosts._connect(HOST))
    assert first is second


async def test_who_finds_a_broken_connection_leaves_the_newer_one_alone(hosts: OneHost) -> None:
    broken = await hosts._connect(HOST)
    broken.abort()
    await broken.wait_closed()
    newer = await hosts._connect(HOST)
    assert newer is not broken
    hosts._drop(HOST, broken)
    assert await hosts._connect(HOST) is newer
    assert not newer.is_closed()
    hosts._drop(HOST, newer)
    await newer.wait_closed()
    assert await hosts._connect(HOST) is not newer


async def test_who_waits_for_a_host_that_is_let_go_of_is_told(hosts: OneHost) -> None:
    waiting = asyncio.ensure_future(hosts._connect(HOST))
    await asyncio.sleep(0)
    await hosts.close()
    with pytest.raises(Unreachable, match="let go of"):
        await waiting
