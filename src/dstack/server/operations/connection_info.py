"""How to get into a running job: `JobConnectionInfo` as the REST API shows it."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
from sqlalchemy.engine import RowMapping

from dstack.api.ssh.machine import network_id
from dstack.core.ides import IDES, Ide
from dstack.core.jobs import JobStatus
from dstack.core.ssh import JOB_SSH_PORT
from dstack.server.settings import SshAddress

_SHOWN = (JobStatus.RUNNING.value, JobStatus.DONE.value)
"""A client that finds its short job done reads the output through the door, as if it still ran."""
_DEV_ENVIRONMENT = '"type":"dev-environment"'


class Door(NamedTuple):
    """What clients are told of the SSH door."""

    address: SshAddress | None
    """None: it does not listen, and only the server's URL leads there."""
    host_key: str | None
    """Type and base64; clients pin it. None: the door stays closed."""
    proxy: SshAddress | None = None
    """Of a separate SSH proxy, if there is one."""
    is_proxy_only: bool = False
    """Whether nobody else may come."""


def of_job(run: RowMapping, job: RowMapping, door: Door) -> dict[str, Any] | None:
    """None unless the submission runs or has run to its end."""
    if job["status"] not in _SHOWN:
        return None
    ssh = door.proxy or door.address
    is_first = job["replica_num"] == 0 and job["job_num"] == 0
    alias = run["run_name"] if is_first else orjson.loads(job["job_spec"])["job_name"]
    ide = _ide_of(run)
    folder = _folder(job) if ide is not None else ""
    return {
        "ide_name": None if ide is None else ide.name,
        "attached_ide_url": None if ide is None else ide.url.format(host=alias, folder=folder),
        "proxied_ide_url": None if ide is None or ssh is None else _proxied_url(ide, job, ssh, folder),
        "attached_ssh_command": ["ssh", alias],
        "proxied_ssh_command": None if ssh is None else _command(job, ssh),
        "sshproxy_hostname": None if door.proxy is None else door.proxy.hostname,
        "sshproxy_port": None if door.proxy is None else door.proxy.port,
        "sshproxy_upstream_id": None if door.proxy is None else str(job["id"]),
        "ssh_door": _door(job, door),
        "host_network_id": network_id() if _is_on_this_machine(job) else None,
    }


def provisioning_data(job: RowMapping, door: Door) -> orjson.Fragment | dict[str, Any] | None:
    """Where the job runs, as stored; for one that runs, with the way in for clients that know no door:
    the job's own SSH server, behind the door as a host to jump over."""
    text: str | None = job["provisioning_data"]
    if text is None or door.address is None or job["status"] not in _SHOWN:
        return None if text is None else orjson.Fragment(text)
    placed: dict[str, Any] = orjson.loads(text)
    hostname, port = door.address
    jump = {"hostname": hostname, "username": str(job["id"]), "port": port}
    return placed | {"dockerized": False, "ssh_port": JOB_SSH_PORT, "ssh_proxy": jump}


def _door(job: RowMapping, door: Door) -> dict[str, Any] | None:
    if door.host_key is None or door.is_proxy_only:
        return None
    hostname, port = door.address or (None, None)
    return {"hostname": hostname, "port": port, "username": str(job["id"]), "host_key": door.host_key}


def _is_on_this_machine(job: RowMapping) -> bool:
    """Whether the job runs on the local backend."""
    placed = orjson.loads(job["provisioning_data"]) if job["provisioning_data"] else {}
    return placed.get("region") == "local" and placed.get("hostname") == "127.0.0.1"


def _command(job: RowMapping, ssh: SshAddress) -> list[str]:
    port = [] if ssh.port == 22 else ["-p", str(ssh.port)]
    return ["ssh", *port, f"{job['id']}@{ssh.hostname}"]


def _proxied_url(ide: Ide, job: RowMapping, ssh: SshAddress, folder: str) -> str:
    hostname = f"[{ssh.hostname}]" if ":" in ssh.hostname else ssh.hostname
    port = "" if ssh.port == 22 else f":{ssh.port}"
    return ide.url.format(host=f"{job['id']}@{hostname}{port}", folder=folder)


def _ide_of(run: RowMapping) -> Ide | None:
    """Parsed for dev environments only."""
    text: str = run["run_spec"]
    if _DEV_ENVIRONMENT not in text:
        return None
    configuration = orjson.loads(text)["configuration"]
    return IDES.get(configuration.get("ide")) if configuration["type"] == "dev-environment" else None


def _folder(job: RowMapping) -> str:
    """What the IDE opens."""
    runtime = orjson.loads(job["runtime_data"]) if job["runtime_data"] else {}
    folder: str = runtime.get("working_dir") or "/"
    return folder if folder.startswith("/") else f"/{folder}"
