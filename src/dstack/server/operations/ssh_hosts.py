"""The hosts of SSH fleets: what a fleet's file says of each, checked, and as rows. Keys are never shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.configurations.fleet import FleetConfiguration, SSHHostParams, SSHParams
from dstack.core.diff import hosts_by_name
from dstack.core.errors import InvalidRequest
from dstack.core.fleets import FleetSpec
from dstack.core.instances import InstanceStatus
from dstack.core.ssh import SSHKey, SSHProxyParams
from dstack.server.db.tables import FleetRow, InstanceRow, ProjectRow
from dstack.server.encryption import Encryption
from dstack.server.hosts.ssh.target import DEFAULT_PORT, SSHTarget
from dstack.server.planning import ssh as ssh_planning
from dstack.server.planning.combining import Combined, of_fleet
from dstack.server.planning.new_instance import instance_values

BACKEND = "ssh"


def check(configuration: FleetConfiguration, ssh: SSHParams) -> None:
    """Raises InvalidRequest with what is wrong, for the first host that it is wrong of."""
    if configuration.nodes is not None:
        raise InvalidRequest("A fleet has either `nodes` or `ssh_config`, not both")
    check_hosts(ssh)
    addresses = [host.internal_ip for host in hosts_by_name(ssh).values() if host.internal_ip is not None]
    if addresses and ssh.network is not None:
        raise InvalidRequest("Give either `network` or an `internal_ip` for each host, not both")
    if addresses and len(addresses) < len(ssh.hosts):
        raise InvalidRequest("Give `internal_ip` for all hosts or for none")


def check_hosts(ssh: SSHParams) -> None:
    """Each is named once, and can be logged in to by what is given. Raises InvalidRequest."""
    if not ssh.hosts:
        raise InvalidRequest("`ssh_config.hosts` is empty; name at least one host")
    if len(hosts_by_name(ssh)) < len(ssh.hosts):
        raise InvalidRequest("`ssh_config.hosts` names a host twice; each may be there once")
    for host in hosts_by_name(ssh).values():
        _check_host(host, ssh)


def _check_host(host: SSHHostParams, ssh: SSHParams) -> None:
    if (host.user or ssh.user) is None:
        raise InvalidRequest(f"Host {host.hostname} has no `user`; set it there or for all in `ssh_config`")
    _check_key(host.ssh_key or ssh.ssh_key, f"host {host.hostname}")
    jump = host.proxy_jump or ssh.proxy_jump
    if jump is not None:
        _check_key(jump.ssh_key, f"the `proxy_jump` {jump.hostname}")


def _check_key(key: SSHKey | None, of_what: str) -> None:
    if key is None or not key.private:
        raise InvalidRequest(f"There is no private key for {of_what}; set `identity_file`")


def without_keys(spec: FleetSpec) -> FleetSpec:
    """As it is stored and shown."""
    ssh = spec.configuration.ssh_config
    if ssh is None:
        return spec
    configuration = spec.configuration.model_copy(update={"ssh_config": params_without_keys(ssh)})
    return spec.model_copy(update={"configuration": configuration})


def params_without_keys(ssh: SSHParams) -> SSHParams:
    return ssh.model_copy(
        update={
            "ssh_key": None,
            "proxy_jump": _jump_without_key(ssh.proxy_jump),
            "hosts": [_host_without_key(host) for host in ssh.hosts],
        }
    )


def _host_without_key(host: SSHHostParams | str) -> SSHHostParams | str:
    if isinstance(host, str):
        return host
    return host.model_copy(update={"ssh_key": None, "proxy_jump": _jump_without_key(host.proxy_jump)})


def _jump_without_key(jump: SSHProxyParams | None) -> SSHProxyParams | None:
    return None if jump is None else jump.model_copy(update={"ssh_key": None})


def target_of(host: SSHHostParams, ssh: SSHParams) -> SSHTarget:
    """How to log in there; what the host's entry leaves open is taken from the fleet's."""
    jump = host.proxy_jump or ssh.proxy_jump
    through = None
    if jump is not None:
        through = SSHTarget(
            hostname=jump.hostname,
            username=jump.user,
            port=jump.port or DEFAULT_PORT,
            private_keys=_private(jump.ssh_key),
            host_key=jump.host_key,
        )
    return SSHTarget(
        hostname=host.hostname,
        username=host.user or ssh.user or "",
        port=host.port or ssh.port or DEFAULT_PORT,
        private_keys=_private(host.ssh_key or ssh.ssh_key),
        host_key=host.host_key,
        jump=through,
    )


def _private(key: SSHKey | None) -> tuple[str, ...]:
    return () if key is None or key.private is None else (key.private,)


def host_rows(
    fleet: FleetRow,
    configuration: FleetConfiguration,
    names: Iterable[str],
    nums: Sequence[int],
    *,
    now: datetime,
    encryption: Encryption,
    known: Mapping[str, InstanceRow],
) -> list[dict[str, Any]]:
    """The values of the rows of new instances, one a host. `configuration` has the private keys; `known`: the
    fleet's other hosts, with which they share the pinned keys of jump hosts."""
    ssh = configuration.ssh_config
    assert ssh is not None
    hosts = hosts_by_name(ssh)
    terms = of_fleet(FleetSpec.model_validate_json(fleet.spec, extra="ignore"))
    pinned = {
        _jump_address(hosts[name], ssh): row.jump_host_key
        for name, row in known.items()
        if name in hosts and row.jump_host_key is not None
    }
    return [
        _host_row(fleet, configuration, ssh, hosts[name], num, now, encryption, terms)
        | {"jump_host_key": pinned.get(_jump_address(hosts[name], ssh))}
        for name, num in zip(names, nums, strict=True)
    ]


def _jump_address(host: SSHHostParams, ssh: SSHParams) -> tuple[str, int] | None:
    jump = host.proxy_jump or ssh.proxy_jump
    return None if jump is None else (jump.hostname, jump.port or DEFAULT_PORT)


def _host_row(
    fleet: FleetRow,
    configuration: FleetConfiguration,
    ssh: SSHParams,
    host: SSHHostParams,
    num: int,
    now: datetime,
    encryption: Encryption,
    terms: Combined,
) -> dict[str, Any]:
    values = instance_values(
        terms,
        fleet_id=fleet.id,
        fleet_name=fleet.name,
        project_id=fleet.project_id,
        num=num,
        now=now,
    )
    target = target_of(host, ssh)
    blocks = configuration.blocks if host.blocks is None else host.blocks
    details = {"internal_ip": host.internal_ip, "network": ssh.network, "blocks": blocks}
    return values | {
        "backend": BACKEND,
        "region": ssh_planning.REGION,
        "price": 0.0,
        "idle_duration": -1,
        "ssh_hostname": host.hostname,
        "ssh_target": encryption.encrypt(target.dump(), f"instances.ssh_target:{values['id']}"),
        "ssh_details": json.dumps(details),
    }


async def assert_free(session: AsyncSession, configuration: FleetConfiguration, *, but_for: UUID | None) -> None:
    """A host belongs to one fleet, over all projects. Raises InvalidRequest."""
    ssh = configuration.ssh_config
    assert ssh is not None
    wanted = hosts_by_name(ssh)
    gone = (InstanceStatus.TERMINATING.value, InstanceStatus.TERMINATED.value)
    query = (
        select(InstanceRow.ssh_hostname, FleetRow.name, ProjectRow.name, FleetRow.id)
        .join(FleetRow, FleetRow.id == InstanceRow.fleet_id)
        .join(ProjectRow, ProjectRow.id == FleetRow.project_id)
        .where(InstanceRow.ssh_hostname.in_(list(wanted)), InstanceRow.status.not_in(gone))
    )
    for hostname, fleet_name, project_name, fleet_id in await session.execute(query):
        if fleet_id != but_for:
            raise InvalidRequest(
                f"Host {hostname} belongs to fleet {fleet_name!r} of project {project_name!r} already; "
                "a host can be in one fleet only"
            )


def changes(known: Mapping[str, int], ssh: SSHParams) -> tuple[list[str], list[str], list[int]]:
    """(hosts that come, hosts that go, numbers for those that come). `known`: the numbers of the fleet's hosts."""
    wanted = hosts_by_name(ssh)
    coming = [name for name in wanted if name not in known]
    going = [name for name in known if name not in wanted]
    taken = {num for name, num in known.items() if name in wanted}
    free = (num for num in range(len(taken) + len(coming) + len(going)) if num not in taken)
    return coming, going, [next(free) for _ in coming]
