"""The public Python API: a typed REST client and the high-level `Client` on it.

The names are loaded when they are used first, so that whoever needs a part of the package pays for that part.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dstack.api.client import Client, RepoCollection, RunCollection
    from dstack.api.errors import AttachError, ClientError, ConfigError
    from dstack.api.git import GitRepo
    from dstack.api.rest.client import RestClient
    from dstack.api.run import Run
    from dstack.core.configurations import DevEnvironmentConfiguration as DevEnvironment
    from dstack.core.configurations import ServiceConfiguration as Service
    from dstack.core.configurations import TaskConfiguration as Task
    from dstack.core.configurations.profiles import Profile
    from dstack.core.configurations.runs import RegistryAuth
    from dstack.core.configurations.scaling import ScalingSpec as Scaling
    from dstack.core.resources import CPUSpec as CPU
    from dstack.core.resources import DiskSpec as Disk
    from dstack.core.resources import GPUSpec as GPU
    from dstack.core.resources import ResourcesSpec as Resources
    from dstack.core.runs import RunStatus

__all__ = [
    "CPU",
    "GPU",
    "AttachError",
    "Client",
    "ClientError",
    "ConfigError",
    "DevEnvironment",
    "Disk",
    "GitRepo",
    "Profile",
    "RegistryAuth",
    "RepoCollection",
    "Resources",
    "RestClient",
    "Run",
    "RunCollection",
    "RunStatus",
    "Scaling",
    "Service",
    "Task",
]

_PLACES = {
    "CPU": ("dstack.core.resources", "CPUSpec"),
    "GPU": ("dstack.core.resources", "GPUSpec"),
    "AttachError": ("dstack.api.errors", "AttachError"),
    "Client": ("dstack.api.client", "Client"),
    "ClientError": ("dstack.api.errors", "ClientError"),
    "ConfigError": ("dstack.api.errors", "ConfigError"),
    "DevEnvironment": ("dstack.core.configurations", "DevEnvironmentConfiguration"),
    "Disk": ("dstack.core.resources", "DiskSpec"),
    "GitRepo": ("dstack.api.git", "GitRepo"),
    "Profile": ("dstack.core.configurations.profiles", "Profile"),
    "RegistryAuth": ("dstack.core.configurations.runs", "RegistryAuth"),
    "RepoCollection": ("dstack.api.client", "RepoCollection"),
    "Resources": ("dstack.core.resources", "ResourcesSpec"),
    "RestClient": ("dstack.api.rest.client", "RestClient"),
    "Run": ("dstack.api.run", "Run"),
    "RunCollection": ("dstack.api.client", "RunCollection"),
    "RunStatus": ("dstack.core.runs", "RunStatus"),
    "Scaling": ("dstack.core.configurations.scaling", "ScalingSpec"),
    "Service": ("dstack.core.configurations", "ServiceConfiguration"),
    "Task": ("dstack.core.configurations", "TaskConfiguration"),
}
"""Where the names really are."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
