"""Services: published under a URL, in one or several replicas."""

import enum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, field_validator, model_validator
from typing_extensions import Self

from dstack.core.configurations.balancing import Balancing
from dstack.core.configurations.ports import PortMapping
from dstack.core.configurations.profiles import ProfileParams, SpotPolicy
from dstack.core.configurations.references import EntityReference
from dstack.core.configurations.runs import (
    GroupName,
    Python,
    RunConfiguration,
    check_group_names,
    number_groups,
)
from dstack.core.configurations.scaling import ReplicaRange, ScalingSpec, check_scaling
from dstack.core.durations import Duration
from dstack.core.models import CoreModel
from dstack.core.resources import ResourcesSpec

DEFAULT_SERVICE_PORT = 80
MAX_PROBES = 10
MAX_PROBE_TIMEOUT = 300
"""Seconds."""
ProbeMethod = Literal["get", "post", "put", "delete", "patch", "head"]


class TGIChatModel(CoreModel):
    """A chat model behind the protocol of Text Generation Inference."""

    type: Literal["chat"] = "chat"
    name: str
    """What clients call it."""
    format: Literal["tgi"]
    """Protocol of the replicas."""
    chat_template: str | None = None
    """Jinja template of the prompt; by default the model's own."""
    eos_token: str | None = None
    """End of a sequence; by default the model's own."""


class OpenAIChatModel(CoreModel):
    """A chat model behind an OpenAI-compatible API at `prefix`."""

    type: Literal["chat"] = "chat"
    name: str
    """What clients call it."""
    format: Literal["openai"]
    """Protocol of the replicas."""
    prefix: str = "/v1"
    """Path of the API at the replicas."""


def _expand_model(value: Any) -> Any:
    return {"type": "chat", "name": value, "format": "openai"} if isinstance(value, str) else value


ChatModel = Annotated[
    Annotated[TGIChatModel | OpenAIChatModel, Field(discriminator="format")], BeforeValidator(_expand_model)
]


class IPAddressPartitioningKey(CoreModel):
    """Requests are counted by the client's address."""

    type: Literal["ip_address"] = "ip_address"


class HeaderPartitioningKey(CoreModel):
    """Requests are counted by the value of a header."""

    type: Literal["header"] = "header"
    header: str = Field(max_length=500, pattern=r"^[a-zA-Z0-9-_]+$")
    """Name of the header."""


class RateLimit(CoreModel):
    """How many requests per second a path prefix takes."""

    prefix: str = Field(default="/", max_length=4094, pattern=r"^/[^\s\\{}]*$")
    """Of the paths that are counted together."""
    key: IPAddressPartitioningKey | HeaderPartitioningKey = Field(
        default_factory=IPAddressPartitioningKey, discriminator="type"
    )
    """Who shares the limit."""
    rps: float = Field(ge=1 / 60, le=1.5372286728091293e17)
    """Requests per second."""
    burst: int = Field(default=0, ge=0, le=9223372036854775807)
    """How many more may come at once."""


class HTTPHeaderSpec(CoreModel):
    """A header of a probe."""

    name: str = Field(min_length=1, max_length=256)
    """Name of the header."""
    value: str = Field(min_length=1, max_length=2048)
    """Its value."""


def _check_url(url: str) -> str:
    if not url.startswith("/"):
        raise ValueError(f"the 'url' of a probe is a path and starts with '/', not {url!r}")
    return url


def _check_positive(seconds: int) -> int:
    if seconds < 1:
        raise ValueError("must be at least 1s")
    return seconds


def _check_timeout(seconds: int) -> int:
    if seconds > MAX_PROBE_TIMEOUT:
        raise ValueError("must be at most 5m")
    return _check_positive(seconds)


class ProbeConfig(CoreModel):
    """A request that tells whether a replica is ready."""

    type: Literal["http"]
    url: Annotated[str, AfterValidator(_check_url)] | None = None
    """Path, by default `/`."""
    method: ProbeMethod | None = None
    """By default `get`."""
    headers: list[HTTPHeaderSpec] = Field(default_factory=list, max_length=16)
    """Of the request."""
    body: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    """Of the request; not with `get` and `head`."""
    timeout: Annotated[Duration, AfterValidator(_check_timeout)] | None = None
    """At most 5 minutes, by default 10 s."""
    interval: Annotated[Duration, AfterValidator(_check_positive)] | None = None
    """Between two requests, by default 15 s."""
    ready_after: Annotated[int, Field(ge=1)] | None = None
    """How many successes in a row make the replica ready; by default 1."""
    until_ready: bool | None = None
    """Stop asking once it is ready."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.body is not None and self.method in ("get", "head"):
            raise ValueError(f"a probe with a 'body' cannot use the method '{self.method}'")
        return self


class RouterType(str, enum.Enum):
    """What routes requests to the replicas of a service."""

    SMG = "smg"
    DYNAMO = "dynamo"


def _parse_router(value: Any) -> Any:
    return RouterType.SMG if value == "sglang" else value


def _show_router(router: RouterType) -> str:
    return "sglang" if router is RouterType.SMG else router.value


class ReplicaGroupRouterConfig(CoreModel):
    """Makes the group's one replica the router of the others. `smg` is shown as `sglang`."""

    type: Annotated[RouterType, BeforeValidator(_parse_router), PlainSerializer(_show_router)] = RouterType.SMG
    """Which router."""


class ReplicaGroup(CoreModel):
    """Replicas of a service that are alike. `count` is another word for `replicas`."""

    name: GroupName | None = None
    """By default the group's number."""
    replicas: ReplicaRange
    """How many; `count` is another word for it."""
    scaling: ScalingSpec | None = None
    """How many between the two ends."""
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    """What each replica needs."""
    spot_policy: SpotPolicy | None = None
    """In place of the service's."""
    reservation: str | None = None
    """In place of the service's."""
    commands: list[str] = Field(default_factory=list)
    """What each replica runs."""
    image: str | None = None
    """In place of the service's."""
    python: Python | None = None
    """In place of the service's."""
    nvcc: bool | None = None
    """In place of the service's."""
    docker: bool | None = None
    """In place of the service's."""
    privileged: bool | None = None
    """In place of the service's."""
    router: ReplicaGroupRouterConfig | None = None
    """Makes the group's one replica the router of the others."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, dict) and "count" in value and "replicas" not in value:
            value = {("replicas" if key == "count" else key): item for key, item in value.items()}
        return value


def _expand_port(value: Any) -> Any:
    """A single number is the port of the container; services are published on port 80."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, int):
        return {"local_port": DEFAULT_SERVICE_PORT, "container_port": value}
    if isinstance(value, str) and value.startswith("*"):
        raise ValueError(f"{value!r} is not a service's port: write '8000' or '80:8000'")
    return value


def _expand_gateway(value: Any) -> Any:
    return value == "true" if value in ("true", "false") else value


def _is_none(value: Any) -> bool:
    return value is None


class ServiceParams(CoreModel):
    """The fields that only a service has."""

    port: Annotated[PortMapping, BeforeValidator(_expand_port)]
    """Where the replicas listen: `8000`, or `80:8000`."""
    gateway: Annotated[bool | EntityReference | None, BeforeValidator(_expand_gateway)] = None
    """`true`: the default one; `false`: none, the server publishes the service itself; or a name."""
    strip_prefix: bool = True
    """Paths reach the replicas without the proxy's prefix."""
    model: ChatModel | None = None
    """Publishes the service as a model, too."""
    https: bool | Literal["auto"] | None = None
    """On a gateway."""
    auth: bool = True
    """Only members of the project may call it."""
    scaling: ScalingSpec | None = None
    """How many replicas between the two ends of `replicas`."""
    rate_limits: list[RateLimit] = Field(default_factory=list)
    """How many requests are let through."""
    probes: list[ProbeConfig] | None = None
    """Requests that tell whether a replica is ready; `[]` for none."""
    replicas: ReplicaRange | None = None
    """A number or a range such as `1..4`, or a list of groups."""
    groups: Annotated[list[ReplicaGroup] | None, BeforeValidator(number_groups)] = None
    """Kinds of replicas."""
    commands: list[str] = Field(default_factory=list)
    """What each replica runs."""
    balancing: Balancing | None = Field(default=None, exclude_if=_is_none)
    """Which replica gets a request: `random`, `least_requests`, `prefix` or `session`."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("replicas"), list) and value.get("groups") is None:
            value = {**value, "replicas": None, "groups": value["replicas"]}
        return value

    @field_validator("rate_limits")
    @classmethod
    def _check_rate_limits(cls, limits: list[RateLimit]) -> list[RateLimit]:
        prefixes = [limit.prefix for limit in limits]
        if len(set(prefixes)) != len(prefixes):
            raise ValueError("two rate limits have the same prefix")
        return limits

    @field_validator("probes")
    @classmethod
    def _check_probes(cls, probes: list[ProbeConfig] | None) -> list[ProbeConfig] | None:
        if probes is not None and any(probe in probes[:index] for index, probe in enumerate(probes)):
            raise ValueError("two probes are the same")
        if probes is not None and len(probes) > MAX_PROBES:
            raise ValueError(f"a service can have at most {MAX_PROBES} probes")
        return probes

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, groups: list[ReplicaGroup] | None) -> list[ReplicaGroup] | None:
        if groups is not None:
            check_group_names([group.name for group in groups])
        return groups


class ServiceConfiguration(ProfileParams, RunConfiguration, ServiceParams):
    """`type: service`."""

    type: Literal["service"] = "service"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.groups is None:
            if not self.commands and self.image is None:
                raise ValueError("a service needs 'commands', or an 'image' that has its own")
            check_scaling(self.replicas, self.scaling)
            return self
        for field in ("commands", "replicas", "scaling"):
            if getattr(self, field):
                raise ValueError(f"'{field}' cannot be used together with 'groups': give it in each group")
        for group in self.groups:
            self._check_group(group)
        if sum(group.router is not None for group in self.groups) > 1:
            raise ValueError("only one group can have a 'router'")
        return self

    def _check_group(self, group: ReplicaGroup) -> None:
        if not group.commands and group.image is None and self.image is None:
            raise ValueError(f"group {group.name!r} needs 'commands', or an 'image' that has its own")
        check_scaling(group.replicas, group.scaling)
        if group.router is not None and (group.replicas.min, group.replicas.max) != (1, 1):
            raise ValueError(f"group {group.name!r} has a 'router' and must have exactly one replica")
