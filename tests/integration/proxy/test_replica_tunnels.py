"""When the server closes tunnels to replicas."""

from __future__ import annotations

import uuid
from pathlib import Path

from sqlalchemy import update
from tests.fixtures.plain_sshd import Sshd
from tests.fixtures.rows import fleet_row, instance_row, job_row, project_row, run_row, user_row

from dstack.server.db.engine import Database
from dstack.server.db.tables import JobRow
from dstack.server.encryption import Encryption, IdentityKey
from dstack.server.hosts.ssh.hosts import SSHHosts
from dstack.server.hosts.ssh.target import SSHTarget
from dstack.server.proxy.tunnels import ReplicaTunnels

ENCRYPTION = Encryption([IdentityKey()])


async def replica_on(database: Database, sshd: Sshd) -> tuple[JobRow, str]:
    """A running replica on an instance that is that host, and its address."""
    user = user_row()
    project = project_row(user)
    run, fleet = run_row(project, user, "web"), fleet_row(project)
    target = SSHTarget("127.0.0.1", sshd.user, sshd.port, (sshd.identity.read_text(),))
    id = uuid.uuid4()
    encrypted = ENCRYPTION.encrypt(target.dump(), f"instances.ssh_target:{id}")
    host_key = " ".join(sshd.host_key.split()[:2])
    instance = instance_row(fleet, id=id, ssh_target=encrypted, host_key=host_key)
    address = f"ssh:{id}:8000"
    job = job_row(run, status="running", instance_id=id, service_address=address)
    async with database.transaction() as session:
        for row in (user, project, fleet, instance, run, job):
            session.add(row)
            await session.flush()
    return job, address


async def test_tunnels_are_closed_when_idle_and_with_their_replica(
    database: Database, sshd: Sshd, tmp_path: Path
) -> None:
    job, address = await replica_on(database, sshd)
    hosts = SSHHosts(database, ENCRYPTION, tmp_path)
    tunnels = ReplicaTunnels(database, hosts, tmp_path / "keys", idle_seconds=0)
    tunnels.start(tuple)
    try:
        path = await tunnels.open(address)
        await tunnels.look()
        assert not Path(path).exists(), "nobody uses it"
    finally:
        await tunnels.stop()
    patient = ReplicaTunnels(database, hosts, tmp_path / "keys")
    patient.start(lambda: {address})
    try:
        path = await patient.open(address)
        await patient.look()
        assert Path(path).exists()
        async with database.transaction() as session:
            await session.execute(update(JobRow).where(JobRow.id == job.id).values(status="terminated"))
        await patient.look()
        assert not Path(path).exists(), "the replica has ended"
    finally:
        await patient.stop()
        await hosts.close()
