"""Dev environments: a machine to work on from an IDE or a terminal."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from dstack.core.configurations.ports import PortMapping
from dstack.core.configurations.profiles import ProfileParams
from dstack.core.configurations.runs import RunConfiguration
from dstack.core.durations import InactivityDuration
from dstack.core.models import CoreModel

_WINDSURF_VERSION = re.compile(r"[^@\s]+@[0-9a-f]+")


class DevEnvironmentParams(CoreModel):
    """The fields that only a dev environment has."""

    ide: Literal["vscode", "cursor", "windsurf", "zed"] | None = None
    """The IDE that is prepared; none: SSH alone."""
    version: str | None = None
    """Of the IDE; for windsurf `version@commit`."""
    init: list[str] = Field(default_factory=list)
    """Commands that run once, at the start."""
    inactivity_duration: InactivityDuration = None
    """Ends the run after nobody was connected for this long; `off` for no limit."""
    ports: list[PortMapping] = Field(default_factory=list)
    """Ports to forward."""


class DevEnvironmentConfiguration(ProfileParams, RunConfiguration, DevEnvironmentParams):
    """`type: dev-environment`."""

    type: Literal["dev-environment"] = "dev-environment"

    @field_validator("entrypoint")
    @classmethod
    def _check_entrypoint(cls, entrypoint: str | None) -> str | None:
        if entrypoint is not None:
            raise ValueError("a dev environment cannot have an 'entrypoint'")
        return entrypoint

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.version is not None and self.ide is None:
            raise ValueError("'version' needs an 'ide'")
        if self.ide == "windsurf" and self.version and _WINDSURF_VERSION.fullmatch(self.version) is None:
            raise ValueError("the 'version' of windsurf is written as 'version@commit'")
        if self.inactivity_duration is not None and self.dstack:
            raise ValueError("'inactivity_duration' cannot be used together with 'dstack: true'")
        return self
