"""References to fleets, gateways and instances."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from dstack.core.models import CoreModel


class EntityReference(CoreModel):
    """A resource by name, in this project or another. Short forms: `name`, `project/name`."""

    project: str | None = None
    """By default the run's."""
    name: str
    """Name in that project."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        project, slash, name = value.rpartition("/")
        if not name or "/" in project or (slash and not project):
            raise ValueError(f"{value!r} is not a reference: write 'name' or 'project/name'")
        return {"project": project or None, "name": name}

    def __str__(self) -> str:
        return f"{self.project}/{self.name}" if self.project else self.name


class InstanceNameSelector(CoreModel):
    """An instance by its name."""

    name: str = Field(min_length=1)
    """Such as `my-fleet-0`."""


class InstanceHostnameSelector(CoreModel):
    """An instance by its hostname or IP address."""

    hostname: str = Field(min_length=1)
    """As `dstack fleet` shows it."""


class FleetInstanceSelector(CoreModel):
    """An instance by its number in a fleet."""

    fleet: EntityReference
    """Name of the fleet."""
    instance: int = Field(ge=0)
    """Number in the fleet."""


def _expand_selector(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _selector_kind(value: Any) -> str:
    keys = value.keys() if isinstance(value, dict) else value.__class__.model_fields if value is not None else ()
    if "fleet" in keys or "instance" in keys:
        return "FleetInstanceSelector"
    return "InstanceHostnameSelector" if "hostname" in keys else "InstanceNameSelector"


InstanceSelector = Annotated[
    Annotated[InstanceNameSelector, Tag("InstanceNameSelector")]
    | Annotated[InstanceHostnameSelector, Tag("InstanceHostnameSelector")]
    | Annotated[FleetInstanceSelector, Tag("FleetInstanceSelector")],
    Discriminator(_selector_kind),
    BeforeValidator(_expand_selector),
]
"""Which instance; a text is its name."""
