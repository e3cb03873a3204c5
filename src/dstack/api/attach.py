"""Attaching to a job: an entry for `ssh`, its ports forwarded to this machine, until it is closed.

with Attachment(rest, run, find_job(run)) as attachment:
    attachment.wait_ready()
    ...                     # `ssh <attachment.name>` works, attachment.ports has local ports by the job's
"""

from __future__ import annotations

import atexit
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dstack import COMPATIBILITY_LEVEL
from dstack.api.errors import AttachError
from dstack.api.rest.client import RestClient
from dstack.api.rest.connection import CA_VARIABLE, VERSION_VARIABLE
from dstack.api.ssh import carrier
from dstack.api.ssh.config_file import (
    ACCESS_SUFFIX,
    KNOWN_HOSTS_SUFFIX,
    EntriesFile,
    include_entries,
    this_process,
)
from dstack.api.ssh.hosts import (
    Door,
    LocalFiles,
    Route,
    find_door,
    has_way_in,
    host_name,
    route_through_door,
    route_to_host,
)
from dstack.api.ssh.keys import choose_identity, ssh_folder
from dstack.api.ssh.ports import LOOPBACK, PortWish, ReservedPorts, find_ports_here, wishes_of
from dstack.api.ssh.tunnel import Tunnel, find_ssh, tunnel_command

PROBE_TIMEOUT = 1.0
"""Seconds that the door's own port may take to greet; else the carrier is used."""

Document = dict[str, Any]


def find_job(run: Document, *, replica: int | None = None, number: int = 0) -> Document:
    """The job to attach to; without a replica, of the first one that runs. Raises AttachError when none does."""
    name = run["run_spec"]["run_name"]
    jobs = [
        job
        for job in run["jobs"]
        if job["job_spec"]["job_num"] == number and replica in (None, job["job_spec"]["replica_num"])
    ]
    running: list[Document] = [job for job in jobs if job_status(job) == "running"]
    if running:
        return running[0]
    if not jobs and run["jobs"]:
        wanted = f"job {number}" if replica is None else f"replica {replica} with a job {number}"
        raise AttachError(f"The run {name} has no {wanted}")
    status = job_status(jobs[0]) if jobs else run["status"]
    if status in ("done", "failed", "terminated", "aborted", "terminating"):
        raise AttachError(f"The run {name} is over ({status}); `dstack logs {name}` shows what it wrote")
    raise AttachError(f"The run {name} is not running yet ({status}): try again when `dstack ps` shows it running")


def job_status(job: Document) -> str:
    """The status of the job's last submission; `submitted` before there is one."""
    return str(job["job_submissions"][-1]["status"]) if job["job_submissions"] else "submitted"


def reserve_ports(plan: Document, host: str | None, server_url: str) -> ReservedPorts:
    """The local ports of the job that a plan shows first, so that one in use is known before anything is sent.

    They are not held when the job may run on this machine and want them itself. What the run's present jobs use
    here is left to the new ones.
    """
    ports = ReservedPorts(host or "localhost")
    current = plan["current_resource"] or {"jobs": []}
    used = {port for job in current["jobs"] if job_status(job) == "running" for port in find_ports_here(job)}
    if plan["job_plans"]:
        apps = plan["job_plans"][0]["job_spec"].get("app_specs") or ()
        wishes = [PortWish(app["port"], app.get("map_to_port")) for app in apps]
        ports.reserve([wish for wish in wishes if wish.remote not in used])
    if urlsplit(server_url).hostname in (*LOOPBACK, None) or server_url.startswith("http+unix:"):
        ports.release()
    return ports


class Attachment:
    """This machine attached to a running job. It connects on its own; a broken connection is made again."""

    def __init__(
        self,
        rest: RestClient,
        run: Document,
        job: Document,
        *,
        ports: ReservedPorts | None = None,
        ssh_identity: str | None = None,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`ports`: local ports that are reserved already. Raises AttachError when there is no way in."""
        self.name = host_name(job)
        """What to write after `ssh`."""
        ssh = find_ssh()
        folder = ssh_folder()
        self._entries = EntriesFile(folder / "config")
        route, files = _plan(rest, run, job, ssh_identity, self._entries)
        self._ports = ports or ReservedPorts()
        self._ports.reserve(wishes_of(job["job_spec"]), find_ports_here(job))
        self._names = [entry.name for entry in route.entries]
        self._entries.put(route.entries, files, this_process())
        include_entries(self._entries.path, Path.home() / ".ssh" / "config")
        command = tunnel_command(ssh, self._entries.path, self.name, route.tunnel_user, self._ports)
        self._tunnel = Tunnel(command, self._ports, is_refusal_final=find_door(job) is not None, notify=notify)
        atexit.register(self.close)
        self._tunnel.start()

    @property
    def ports(self) -> dict[int, int]:
        """Local ports by those of the job."""
        return dict(self._ports.mapping)

    def wait_ready(self) -> None:
        """Returns when the ports are forwarded. Raises AttachError when they will not be."""
        self._tunnel.wait_ready()

    def close(self) -> None:
        """Ends the connection and removes the entry; connections that others made with it live on."""
        atexit.unregister(self.close)
        self._tunnel.close()
        self._entries.remove(self._names, this_process())

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _plan(
    rest: RestClient, run: Document, job: Document, ssh_identity: str | None, entries: EntriesFile
) -> tuple[Route, dict[Path, str]]:
    """The way into the job and the files that its entries name."""
    folder, name = entries.path.parent, host_name(job)
    if not has_way_in(job):
        raise AttachError(f"The server does not say how to get into {name}: its SSH door may be off")
    token, door = rest.token or "", find_door(job)
    use_carrier = door is not None and _needs_carrier(door, rest.base_url)
    identity: Path | None = None
    if not use_carrier or ssh_identity is not None:
        run_key = run["run_spec"].get("ssh_key_pub") if door is None else None
        identity = choose_identity(rest, token, given=ssh_identity, run_key=run_key, folder=folder)
    access_file = entries.file_of(name, ACCESS_SUFFIX)
    local = LocalFiles(
        identity=identity,
        told_hosts=entries.file_of(name, KNOWN_HOSTS_SUFFIX),
        learned_hosts=folder / "known_hosts",
        carrier_command=_carrier_command(access_file),
    )
    if door is None:
        return route_to_host(job, local), {}
    files: dict[Path, str] = {}
    if use_carrier:
        files[access_file] = _access(rest)
    route = route_through_door(job, door, local, use_carrier=use_carrier)
    if route.told_keys:
        files[local.told_hosts] = route.told_keys
    return route, files


def _needs_carrier(door: Door, base_url: str) -> bool:
    """Whether the door's own port is not to be reached from here. Other SSH proxies have no carrier."""
    if door.hostname is None:
        return True
    if door.host_key is None:
        return False
    is_of_other_machine = door.hostname in LOOPBACK and urlsplit(base_url).hostname not in LOOPBACK
    return is_of_other_machine or not _greets(door.hostname, door.port)


def _greets(hostname: str, port: int) -> bool:
    try:
        with socket.create_connection((hostname, port), PROBE_TIMEOUT) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _carrier_command(access_file: Path) -> str:
    words = (sys.executable, "-I", "-S", carrier.__file__, str(access_file))
    return " ".join(shlex.quote(word) for word in words).replace("%", "%%")


def _access(rest: RestClient) -> str:
    return json.dumps(
        {
            "url": rest.base_url,
            "token": rest.token,
            "version": os.environ.get(VERSION_VARIABLE) or COMPATIBILITY_LEVEL,
            "ca": os.environ.get(CA_VARIABLE) or None,
        }
    )
