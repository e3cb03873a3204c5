"""What differs between two specs, and whether the change can be made in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel

from dstack.core.configurations.dev_environment import DevEnvironmentConfiguration
from dstack.core.configurations.files import AnyRunConfiguration
from dstack.core.configurations.fleet import SSHHostParams, SSHParams
from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.configurations.service import ServiceConfiguration
from dstack.core.fleets import FleetSpec
from dstack.core.gateways import GatewaySpec
from dstack.core.runs import RunSpec

RUN_SPEC_FIELDS = frozenset({"configuration", "configuration_path"})
SERVICE_SPEC_FIELDS = RUN_SPEC_FIELDS | {"repo_data", "repo_code_hash", "file_archives", "working_dir"}
RUN_FIELDS = frozenset({"priority"})
DEV_ENVIRONMENT_FIELDS = RUN_FIELDS | {"inactivity_duration"}
SERVICE_FIELDS = RUN_FIELDS | frozenset(
    [
        "balancing",
        "commands",
        "docker",
        "entrypoint",
        "env",
        "files",
        "gateway",
        "groups",
        "image",
        "nvcc",
        "port",
        "privileged",
        "probes",
        "python",
        "replicas",
        "resources",
        "scaling",
        "shell",
        "single_branch",
        "user",
        "volumes",
        "working_dir",
    ]
)
FLEET_FIELDS = frozenset(
    [
        "nodes",
        "reservation",
        "tags",
        "resources",
        "backends",
        "regions",
        "availability_zones",
        "instance_types",
        "spot_policy",
        "max_price",
    ]
)
GATEWAY_FIELDS = frozenset({"domain", "default", "replicas"})


def changed_fields(old: BaseModel, new: BaseModel) -> list[str]:
    """The names of the fields whose values differ, in declared order."""
    return [name for name in type(old).model_fields if getattr(old, name) != getattr(new, name, None)]


def changed_run_fields(old: RunSpec, new: RunSpec) -> list[str]:
    """What differs between two run specs, such as `configuration.image` or `repo_data`.

    `files` counts only where the archives differ; `https: true` is what null means; nor does it matter whether the
    CPU's architecture is spelt out.
    """
    fields: list[str] = []
    for name in changed_fields(old, new):
        if name != "configuration":
            fields.append(name)
        elif type(old.configuration) is not type(new.configuration):
            fields.append("configuration.type")
        else:
            configurations = _comparable(old.configuration), _comparable(new.configuration)
            fields += [f"configuration.{field}" for field in changed_fields(*configurations)]
    if old.file_archives == new.file_archives and "configuration.files" in fields:
        fields.remove("configuration.files")
    return fields


def _comparable(configuration: AnyRunConfiguration) -> AnyRunConfiguration:
    copy = configuration.model_copy(deep=True)
    copy.resources.cpu.arch = None
    if isinstance(copy, ServiceConfiguration):
        copy.https = True if copy.https is None else copy.https
    return copy


def can_update_run(old: RunSpec, new: RunSpec) -> bool:
    """Whether an active run can take the new spec without being stopped. Equal specs can."""
    return not blocking_run_fields(old, new)


def blocking_run_fields(old: RunSpec, new: RunSpec) -> list[str]:
    """The fields whose change needs the run to be stopped."""
    changed = changed_run_fields(old, new)
    if any(field != "configuration.priority" for field in changed) and _has_fixed_router(old, new):
        return changed
    spec_fields, fields = _updatable_run_fields(new.configuration)
    allowed = spec_fields | {f"configuration.{field}" for field in fields}
    return [field for field in changed if field not in allowed]


def _updatable_run_fields(configuration: AnyRunConfiguration) -> tuple[frozenset[str], frozenset[str]]:
    if isinstance(configuration, ServiceConfiguration):
        return SERVICE_SPEC_FIELDS, SERVICE_FIELDS
    if isinstance(configuration, DevEnvironmentConfiguration):
        return RUN_SPEC_FIELDS, DEV_ENVIRONMENT_FIELDS
    return RUN_SPEC_FIELDS, RUN_FIELDS


def _has_fixed_router(old: RunSpec, new: RunSpec) -> bool:
    """Groups with a router know each other by address; they are replaced as a whole."""
    groups = [
        group
        for spec in (old, new)
        if isinstance(spec.configuration, ServiceConfiguration)
        for group in spec.configuration.groups or ()
    ]
    return any(group.router is not None for group in groups)


def changed_fleet_fields(old: FleetSpec, new: FleetSpec) -> list[str]:
    """What differs between two fleet specs."""
    fields = [name for name in changed_fields(old, new) if name not in ("configuration", "autocreated")]
    return fields + [f"configuration.{name}" for name in changed_fields(old.configuration, new.configuration)]


def can_update_fleet(old: FleetSpec, new: FleetSpec) -> bool:
    """Whether the fleet can take the new spec without being deleted. Equal specs can."""
    changed = set(changed_fields(old.configuration, new.configuration))
    if old.configuration.ssh_config is None or new.configuration.ssh_config is None:
        return changed <= FLEET_FIELDS
    return changed <= {"ssh_config"} and _can_update_ssh(
        old.configuration.ssh_config, new.configuration.ssh_config
    )


def _can_update_ssh(old: SSHParams, new: SSHParams) -> bool:
    """Hosts may come and go; those that stay must stay as they are (but for the file of their key)."""
    ignored = ("hosts", "identity_file", "ssh_key")
    if any(name not in ignored for name in changed_fields(old, new)):
        return False
    before, after = hosts_by_name(old), hosts_by_name(new)
    return all(_is_same_host(before[name], after[name]) for name in before.keys() & after.keys())


def _is_same_host(old: SSHHostParams, new: SSHHostParams) -> bool:
    return all(name in ("identity_file", "ssh_key") for name in changed_fields(old, new))


def hosts_by_name(ssh_config: SSHParams) -> Mapping[str, SSHHostParams]:
    """The hosts of an SSH fleet, short forms spelt out."""
    hosts: Iterable[SSHHostParams] = (
        SSHHostParams(hostname=host) if isinstance(host, str) else host for host in ssh_config.hosts
    )
    return {host.hostname: host for host in hosts}


def changed_gateway_fields(old: GatewayConfiguration, new: GatewayConfiguration) -> list[str]:
    """What differs between two gateways; keys, and the files they are in, do not count."""
    changed = changed_fields(old, new)
    if old.ssh_config is not None and new.ssh_config is not None and _is_same_ssh(old.ssh_config, new.ssh_config):
        changed = [name for name in changed if name != "ssh_config"]
    return changed


def _is_same_ssh(old: SSHParams, new: SSHParams) -> bool:
    return hosts_by_name(old).keys() == hosts_by_name(new).keys() and _can_update_ssh(old, new)


def can_update_gateway(old: GatewaySpec, new: GatewaySpec) -> bool:
    """Whether the gateway can take the new spec without being deleted. Equal specs can."""
    return set(changed_gateway_fields(old.configuration, new.configuration)) <= GATEWAY_FIELDS
