"""Which configuration a file holds: parsing by `type`."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from dstack.core.configurations.dev_environment import DevEnvironmentConfiguration
from dstack.core.configurations.fleet import FleetConfiguration
from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.configurations.preset import PresetConfiguration
from dstack.core.configurations.service import ServiceConfiguration
from dstack.core.configurations.task import TaskConfiguration
from dstack.core.configurations.volume import VolumeConfiguration

AnyRunConfiguration = Annotated[
    DevEnvironmentConfiguration | TaskConfiguration | ServiceConfiguration, Field(discriminator="type")
]
AnyApplyConfiguration = Annotated[
    DevEnvironmentConfiguration
    | TaskConfiguration
    | ServiceConfiguration
    | FleetConfiguration
    | GatewayConfiguration
    | VolumeConfiguration
    | PresetConfiguration,
    Field(discriminator="type"),
]


def parse_run_configuration(data: Any) -> AnyRunConfiguration:
    """The task, service or dev environment that the data describes. Raises pydantic's ValidationError."""
    return _run_adapter().validate_python(data)


def parse_apply_configuration(data: Any) -> AnyApplyConfiguration:
    """Whatever `dstack apply` can apply. Raises pydantic's ValidationError."""
    return _apply_adapter().validate_python(data)


@cache
def _run_adapter() -> TypeAdapter[AnyRunConfiguration]:
    return TypeAdapter(AnyRunConfiguration)


@cache
def _apply_adapter() -> TypeAdapter[AnyApplyConfiguration]:
    return TypeAdapter(AnyApplyConfiguration)
