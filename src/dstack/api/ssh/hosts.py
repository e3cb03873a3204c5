"""From what the server says of a job to the `Host` entries that lead into it. Pure.

| the job's way in           | entries                                                                          |
|----------------------------|----------------------------------------------------------------------------------|
| the server's SSH door      | `<name>` through the carrier, or straight to the door's port where it is reached |
| another SSH proxy          | `<name>`: the proxy's address, user = upstream id                                |
| a container's own sshd     | `<name>-host`: the host; `<name>`: sshd on it, through `<name>-host`             |
| a machine of its own       | `<name>`: the machine                                                            |
| the latter two, far away   | in front of them `<name>-jump-host`                                              |

`<name>` is the run's name for job 0 of replica 0, else the job's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstack.api.errors import AttachError

CONTAINER_SSH_PORT = 10022
DEFAULT_USER = "root"
SSH_PORT = 22
KEEP_ALIVE_SECONDS = 20
"""Shorter than what proxies on the way allow a silent connection."""
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr"
"""Of the door, the quickest first."""

Document = dict[str, Any]


@dataclass(frozen=True)
class HostEntry:
    """One `Host` of the SSH client's configuration."""

    name: str
    options: tuple[tuple[str, str], ...]

    def render(self) -> str:
        """As it stands in the file."""
        lines = [f"Host {_checked(self.name)}"]
        for key, value in self.options:
            if "\n" in value or "\r" in value:
                raise AttachError(f"The server names a {key} of several lines")
            lines.append(f"    {key} {value}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Door:
    """The SSH door, or another SSH proxy, in front of a job."""

    upstream_id: str
    hostname: str | None
    """None: only the carrier leads there."""
    port: int
    host_key: str | None
    """As in a `known_hosts` file, without the host, one a line; None: another SSH proxy, no carrier."""


@dataclass(frozen=True)
class LocalFiles:
    """The files of this machine that entries name."""

    identity: Path | None
    """None: the server lets in whom its carrier brings, who has shown the token."""
    told_hosts: Path
    """Known hosts that the server told."""
    learned_hosts: Path
    """Known hosts from first contacts."""
    carrier_command: str
    """`ProxyCommand` of the carrier, ready for a shell."""


@dataclass(frozen=True)
class Route:
    """How to get into a job."""

    name: str
    entries: tuple[HostEntry, ...]
    tunnel_user: str
    """As whom the connection of the forwarded ports is made."""
    told_keys: str = ""
    """The content of the file of told hosts."""


def host_name(job: Document) -> str:
    """What to write after `ssh`."""
    spec = job["job_spec"]
    name = str(spec["job_name"])
    if (spec["replica_num"], spec["job_num"]) == (0, 0):
        name = name.removesuffix("-0-0")
    return _checked(name)


def find_door(job: Document) -> Door | None:
    """The door in front of the job, if there is one."""
    told = job.get("job_connection_info") or {}
    if own := told.get("ssh_door"):
        return _door(own["username"], own["hostname"], own["port"], own["host_key"])
    if upstream_id := told.get("sshproxy_upstream_id"):
        return _door(upstream_id, told["sshproxy_hostname"], told["sshproxy_port"], None)
    return None


def _door(upstream_id: str, hostname: str | None, port: int | None, host_key: str | None) -> Door:
    return Door(_checked(upstream_id), _checked(hostname) if hostname else None, port or SSH_PORT, host_key)


def has_way_in(job: Document) -> bool:
    """Whether the server says how to get into the job."""
    placed = job["job_submissions"][-1].get("job_provisioning_data") or {}
    return find_door(job) is not None or bool(placed.get("hostname"))


def route_through_door(job: Document, door: Door, files: LocalFiles, *, use_carrier: bool) -> Route:
    """The way through the door. Its key is pinned: told by the server, or else as it was at first contact."""
    name = host_name(job)
    alias = name if door.host_key else f"[{door.hostname}]:{door.port}"
    options = [("HostName", door.hostname or "localhost"), ("Port", str(door.port)), ("User", door.upstream_id)]
    options += _pinned(files, alias, is_told=door.host_key is not None)
    if door.host_key:
        options.append(("Ciphers", CIPHERS))
    if use_carrier:
        options.append(("ProxyCommand", files.carrier_command))
    told_keys = "".join(f"{alias} {line}\n" for line in (door.host_key or "").splitlines() if line.strip())
    tunnel_user = door.upstream_id if door.host_key else f"{door.upstream_id}_root"
    return Route(name, (HostEntry(name, tuple(options)),), tunnel_user, told_keys)


def route_to_host(job: Document, files: LocalFiles) -> Route:
    """The way to the job's own host, which the server says (`has_way_in`)."""
    submission = job["job_submissions"][-1]
    placed = submission.get("job_provisioning_data") or {}
    name, jump, host = host_name(job), f"{host_name(job)}-jump-host", f"{host_name(job)}-host"
    entries, before = [], ""
    if placed.get("ssh_proxy"):
        entries.append(_plain_entry(jump, placed["ssh_proxy"], files, alias=_alias(placed, "jump")))
        before = jump
    user, address = _container_user(job), {"hostname": placed["hostname"], "port": placed.get("ssh_port")}
    if placed.get("dockerized"):
        machine = address | {"username": placed["username"]}
        entries.append(_plain_entry(host, machine, files, alias=_alias(placed, "host"), before=before))
        ports = (submission.get("job_runtime_data") or {}).get("ports") or {}
        address = {"hostname": "localhost", "port": ports.get(str(CONTAINER_SSH_PORT), CONTAINER_SSH_PORT)}
        before = host
    inside = address | {"username": user}
    entries.append(_plain_entry(name, inside, files, alias=_checked(submission["id"]), before=before))
    return Route(name, tuple(entries), DEFAULT_USER)


def _plain_entry(name: str, address: Document, files: LocalFiles, *, alias: str, before: str = "") -> HostEntry:
    options = [
        ("HostName", _checked(address["hostname"])),
        ("Port", str(int(address.get("port") or SSH_PORT))),
        ("User", _checked(address["username"])),
        *_pinned(files, alias, is_told=False),
    ]
    if before:
        options.append(("ProxyJump", before))
    return HostEntry(name, tuple(options))


def _pinned(files: LocalFiles, alias: str, *, is_told: bool) -> list[tuple[str, str]]:
    """The key to show and the key to expect. Hosts change their names and addresses, so keys go by an alias."""
    return [
        ("IdentityFile", "none" if files.identity is None else _quoted(files.identity)),
        ("IdentitiesOnly", "yes"),
        ("StrictHostKeyChecking", "yes" if is_told else "accept-new"),
        ("UserKnownHostsFile", _quoted(files.told_hosts if is_told else files.learned_hosts)),
        ("HostKeyAlias", alias),
        ("ServerAliveInterval", str(KEEP_ALIVE_SECONDS)),
    ]


def _alias(placed: Document, part: str) -> str:
    return _checked(f"{placed['hostname']}-{placed['instance_id']}-{part}")


def _container_user(job: Document) -> str:
    runtime = job["job_submissions"][-1].get("job_runtime_data") or {}
    wished = job["job_spec"].get("user") or {}
    return str(runtime.get("username") or wished.get("username") or DEFAULT_USER)


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("%", "%%") + '"'


def _checked(text: object) -> str:
    """The text, which a server told. Raises AttachError for what may mean more than a name to `ssh` or a shell."""
    if re.fullmatch(r"[\w:][\w.:@-]*", str(text), re.ASCII) is None:
        raise AttachError(f"The server names {str(text)!r}, which is no name of a host or user")
    return str(text)
