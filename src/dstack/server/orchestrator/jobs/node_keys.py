"""The key pair by which the nodes of a replica reach each other: one an attempt, in the row of its node 0."""

from __future__ import annotations

import json
from uuid import UUID

from sqlalchemy import select, update

from dstack.server.db.engine import Database
from dstack.server.db.tables import JobRow
from dstack.server.orchestrator.world import World
from dstack.server.ssh_keys import KeyPair, generate


async def ensure_node_key(world: World, job: JobRow) -> KeyPair:
    """The same for all nodes, whichever asks first."""
    id, stored = await _read(world.database, job)
    context = f"jobs.node_key:{id}"
    if stored is None:
        made = world.encryption.encrypt(json.dumps(generate(job.job_name)), context)
        async with world.database.transaction() as session:
            first = update(JobRow).where(JobRow.id == id, JobRow.node_key.is_(None))
            await session.execute(first.values(node_key=made))
        id, stored = await _read(world.database, job)
        assert stored is not None
    return KeyPair(*json.loads(world.encryption.decrypt(stored, context)))


async def _read(database: Database, job: JobRow) -> tuple[UUID, str | None]:
    """Node 0 of the job's attempt, and what it has."""
    attempt = (
        JobRow.run_id == job.run_id,
        JobRow.replica_num == job.replica_num,
        JobRow.submission_num == job.submission_num,
        JobRow.job_num == 0,
    )
    async with database.session() as session:
        id, stored = (await session.execute(select(JobRow.id, JobRow.node_key).where(*attempt))).one()
    return id, stored
