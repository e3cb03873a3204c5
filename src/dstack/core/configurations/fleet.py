"""Fleets: instances of a cloud, or hosts reached over SSH."""

from __future__ import annotations

import enum
import ipaddress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from typing_extensions import Self

from dstack.core.backends import BackendType, VastAIProfileOptions
from dstack.core.configurations.environment import Env
from dstack.core.configurations.profiles import BlockCount, ProfileRetry, SpotPolicy, Tags
from dstack.core.durations import IdleDuration
from dstack.core.models import CoreModel
from dstack.core.resources import ResourcesSpec, split_range
from dstack.core.ssh import HostKey, SSHKey, SSHProxyParams, without_unset_host_key


class InstanceGroupPlacement(str, enum.Enum):
    """Whether the instances must be close to each other."""

    ANY = "any"
    CLUSTER = "cluster"


def _check_min(value: int) -> int:
    if value < 0:
        raise ValueError("the number of nodes cannot be negative")
    return value


class FleetNodesSpec(CoreModel):
    """How many instances a cloud fleet keeps, starts with and may have. Short forms: `2`, `0..2`, `1..`, `..3`."""

    min: Annotated[int, AfterValidator(_check_min)]
    """So many are kept."""
    target: int
    """So many at the start; `min` by default."""
    max: int | None = None
    """Never more than this."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, int):
            value = {"min": value, "max": value}
        if isinstance(value, str):
            value = {key: end for key, end in split_range(value).items() if end is not None}
        if isinstance(value, dict):
            value = {"min": 0, **value}
            value.setdefault("target", value["min"])
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError("'max' is below 'min'")
        if self.target < self.min or (self.max is not None and self.target > self.max):
            raise ValueError("'target' is not between 'min' and 'max'")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        if self.target == self.min:
            del dumped["target"]
        return dumped


def _check_internal(text: str, parse: Any) -> str:
    try:
        address = parse(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IP address or network: {error}") from error
    if not address.is_private:
        raise ValueError(f"{text!r} is public; the instances' private addresses are expected")
    return text


def _check_internal_ip(text: str) -> str:
    return _check_internal(text, ipaddress.ip_address)


def _check_network(text: str) -> str:
    return _check_internal(text, ipaddress.ip_network)


class SSHHostParams(CoreModel):
    """One host of an SSH fleet; what is not given is taken from the fleet."""

    hostname: str
    """Name or address."""
    port: int | None = None
    """By default 22."""
    user: str | None = None
    """As whom to log in."""
    identity_file: str | None = None
    """Private key on the machine of `dstack apply`."""
    proxy_jump: SSHProxyParams | None = None
    """A host to go through."""
    internal_ip: Annotated[str, AfterValidator(_check_internal_ip)] | None = None
    """Address in the network that connects the hosts."""
    ssh_key: SSHKey | None = None
    """The key itself, in place of `identity_file`."""
    blocks: BlockCount | None = None
    """In place of the fleet's."""
    host_key: HostKey | None = None
    """The host's public key, as `ssh-keyscan` prints it; without, the one it shows at first is pinned."""

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset_host_key(handler(self))


class SSHParams(CoreModel):
    """How to reach the hosts of an SSH fleet."""

    user: str | None = None
    """As whom to log in."""
    port: int | None = None
    """By default 22."""
    identity_file: str | None = None
    """Private key on the machine of `dstack apply`."""
    ssh_key: SSHKey | None = None
    """The key itself, in place of `identity_file`."""
    proxy_jump: SSHProxyParams | None = None
    """A host to go through."""
    hosts: list[SSHHostParams | str]
    """Names, addresses or maps with more."""
    network: Annotated[str, AfterValidator(_check_network)] | None = None
    """Which of the hosts' networks connects them."""


class FleetConfiguration(CoreModel):
    """`type: fleet`."""

    type: Literal["fleet"] = "fleet"
    """Which kind of configuration this is."""
    name: str | None = None
    """Name of the fleet; one is made up where it is left out."""
    placement: InstanceGroupPlacement | None = None
    """`cluster`: close together, for tasks of several nodes."""
    blocks: BlockCount = 1
    """Into how many equal parts an instance is split; `auto`: as many as its GPUs, or else CPUs."""
    nodes: FleetNodesSpec | None = None
    """How many instances: `2`, `0..4`, `1..`. Not with `ssh_config`."""
    reservation: str | None = None
    """A reservation at the cloud that instances are made in."""
    resources: ResourcesSpec | None = None
    """What each instance must have."""
    backends: list[BackendType] | None = None
    """Only these."""
    regions: list[str] | None = None
    """Only these."""
    availability_zones: list[str] | None = None
    """Only these."""
    instance_types: list[str] | None = None
    """Only these."""
    spot_policy: SpotPolicy | None = None
    """`spot`, `on-demand` (default) or `auto` for both."""
    retry: ProfileRetry | bool | None = None
    """Accepted for older files; a fleet tries again by itself."""
    max_price: Annotated[float, Field(gt=0)] | None = None
    """Dollars per hour of an instance, at most."""
    idle_duration: IdleDuration = None
    """How long an instance above `nodes.min` stays up without work; by default 3 days, `off`: for ever."""
    tags: Tags | None = None
    """Labels for the cloud's bill."""
    backend_options: list[VastAIProfileOptions] | None = None
    """Options of single backends."""
    ssh_config: SSHParams | None = None
    """Hosts that are there already."""
    env: Env = Field(default_factory=dict)
    """Variables of all jobs on these instances."""
