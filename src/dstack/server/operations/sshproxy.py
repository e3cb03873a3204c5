"""The way to a job for a separate SSH proxy: through this server's own SSH door, with the key of the project."""

from __future__ import annotations

from uuid import UUID

from dstack.core.errors import ResourceNotExists
from dstack.core.jobs import JobStatus
from dstack.core.schemas.sshproxy import GetUpstreamResponse, UpstreamHost
from dstack.server.db.queries import ssh_door as queries
from dstack.server.db.tables import ProjectRow
from dstack.server.operations.context import Context
from dstack.server.settings import SshAddress


async def get_upstream(ctx: Context, upstream_id: str) -> GetUpstreamResponse:
    """Raises ResourceNotExists when there is no such job, it does not run, or the door is closed."""
    door = ctx.settings.ssh_door_address
    if door is None:
        raise ResourceNotExists("This server's own SSH port is off (DSTACK_SERVER_SSH_PORT)")
    try:
        job_id = UUID(upstream_id)
    except ValueError:
        raise ResourceNotExists(f"There is no upstream {upstream_id!r}; its id is that of a job") from None
    async with ctx.database.session() as session:
        job = await queries.find_job(session, job_id)
        if job is None or job.status != JobStatus.RUNNING.value:
            raise ResourceNotExists(f"There is no running job {upstream_id!r}")
        keys = await queries.list_keys(session, job.project_id)
        project = await session.get_one(ProjectRow, job.project_id)
    private_key = ctx.encryption.decrypt(project.ssh_private_key, f"projects.ssh_private_key:{project.id}")
    if job.run_key:
        keys = queries.unique_keys([*keys, job.run_key])
    return GetUpstreamResponse(hosts=[_host(door, job_id, private_key)], authorized_keys=keys)


def _host(door: SshAddress, job_id: UUID, private_key: str) -> UpstreamHost:
    return UpstreamHost(host=door.hostname, port=door.port, user=str(job_id), private_key=private_key)
