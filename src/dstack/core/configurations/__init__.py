"""The configuration files a person writes (`.dstack.yml`), one module a type.

May import pydantic and the rest of core. Start at `files`, which picks the model by `type`.
"""

from dstack.core.configurations.dev_environment import DevEnvironmentConfiguration
from dstack.core.configurations.files import (
    AnyApplyConfiguration,
    AnyRunConfiguration,
    parse_apply_configuration,
    parse_run_configuration,
)
from dstack.core.configurations.fleet import FleetConfiguration
from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.configurations.preset import PresetConfiguration
from dstack.core.configurations.service import ServiceConfiguration
from dstack.core.configurations.task import TaskConfiguration
from dstack.core.configurations.volume import VolumeConfiguration

__all__ = [
    "AnyApplyConfiguration",
    "AnyRunConfiguration",
    "DevEnvironmentConfiguration",
    "FleetConfiguration",
    "GatewayConfiguration",
    "PresetConfiguration",
    "ServiceConfiguration",
    "TaskConfiguration",
    "VolumeConfiguration",
    "parse_apply_configuration",
    "parse_run_configuration",
]
