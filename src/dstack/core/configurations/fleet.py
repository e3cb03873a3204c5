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
from dstack.core.ssh import SSHKey, SSHProxyParams


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
    target: int
    max: int | None = None

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
    port: int | None = None
    user: str | None = None
    identity_file: str | None = None
    proxy_jump: SSHProxyParams | None = None
    internal_ip: Annotated[str, AfterValidator(_check_internal_ip)] | None = None
    ssh_key: SSHKey | None = None
    blocks: BlockCount | None = None


class SSHParams(CoreModel):
    """How to reach the hosts of an SSH fleet."""

    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    ssh_key: SSHKey | None = None
    proxy_jump: SSHProxyParams | None = None
    hosts: list[SSHHostParams | str]
    network: Annotated[str, AfterValidator(_check_network)] | None = None
    """Which of the hosts' networks connects them."""


class FleetConfiguration(CoreModel):
    """`type: fleet`."""

    type: Literal["fleet"] = "fleet"
    name: str | None = None
    placement: InstanceGroupPlacement | None = None
    blocks: BlockCount = 1
    nodes: FleetNodesSpec | None = None
    reservation: str | None = None
    resources: ResourcesSpec | None = None
    backends: list[BackendType] | None = None
    regions: list[str] | None = None
    availability_zones: list[str] | None = None
    instance_types: list[str] | None = None
    spot_policy: SpotPolicy | None = None
    retry: ProfileRetry | bool | None = None
    max_price: Annotated[float, Field(gt=0)] | None = None
    idle_duration: IdleDuration = None
    tags: Tags | None = None
    backend_options: list[VastAIProfileOptions] | None = None
    ssh_config: SSHParams | None = None
    env: Env = Field(default_factory=dict)
