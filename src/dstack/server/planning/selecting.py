"""Which fleets and instances a run names. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dstack.core.configurations.references import (
    EntityReference,
    FleetInstanceSelector,
    InstanceHostnameSelector,
    InstanceSelector,
)


@dataclass(frozen=True)
class FleetName:
    """What a fleet may be called by."""

    name: str
    project: str
    is_imported: bool = False
    """Of another project, which shares it: it is named together with that project."""


@dataclass(frozen=True)
class InstanceNames:
    """What an instance may be called by."""

    fleet: FleetName
    num: int
    name: str
    hostname: str | None = None
    """Once it has one."""


def is_named(fleet: FleetName, references: Sequence[EntityReference] | None) -> bool:
    """Whether the run may use the fleet; None: it names none, so it may use each."""
    return references is None or any(_refers(reference, fleet) for reference in references)


def is_selected(instance: InstanceNames, selectors: Sequence[InstanceSelector] | None) -> bool:
    """Whether the run may use the instance; None: it names none, so it may use each."""
    return selectors is None or any(_selects(selector, instance) for selector in selectors)


def _refers(reference: EntityReference, fleet: FleetName) -> bool:
    is_of_project = not fleet.is_imported if reference.project is None else reference.project == fleet.project
    return reference.name == fleet.name and is_of_project


def _selects(selector: InstanceSelector, instance: InstanceNames) -> bool:
    if isinstance(selector, FleetInstanceSelector):
        return _refers(selector.fleet, instance.fleet) and instance.num == selector.instance
    if isinstance(selector, InstanceHostnameSelector):
        return instance.hostname is not None and instance.hostname == selector.hostname
    return instance.name == selector.name
