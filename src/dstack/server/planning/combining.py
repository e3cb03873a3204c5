"""What a fleet and a run ask for together (reference: lifecycle, section 8). Pure.

A setting that one side leaves open is the other side's; what both give is narrowed down. Where nothing is left,
the fleet is not usable for the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from dstack.core.configurations.fleet import FleetConfiguration
from dstack.core.configurations.profiles import ProfileParams, SpotPolicy
from dstack.core.fleets import FleetSpec
from dstack.core.instances import Requirements
from dstack.core.resources import CPUSpec, DiskSpec, GPUSpec, Range, ResourcesSpec
from dstack.server.planning.offers import Limits

NEVER = -1
"""An idle duration of `off`."""

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Combined:
    """What instances must be like, and what becomes of them."""

    requirements: Requirements
    limits: Limits
    idle_duration: int | None = None
    """Seconds; -1: never given up; None: nobody said."""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NotUsable:
    """The fleet cannot serve the run."""

    reason: str
    """In words, such as `backends: the fleet has aws, the run has gcp`."""


class _Conflict(Exception):
    """Carries the reason to where the combination began."""


def combine(fleet: FleetSpec, requirements: Requirements, profile: ProfileParams) -> Combined | NotUsable:
    """`requirements` are the job's; `profile` is the run's configuration with its profile filled in."""
    try:
        return _combine(effective_fleet(fleet), requirements, profile)
    except _Conflict as conflict:
        return NotUsable(str(conflict))


def reusing(
    fleet: FleetSpec, requirements: Requirements, run_policy: SpotPolicy | None
) -> Requirements | NotUsable:
    """What an instance that the fleet has already must be like: what the job needs. The fleet's settings are about
    what it creates, but a job that says nothing about spot takes what the fleet keeps."""
    of_fleet = fleet.configuration.spot_policy or fleet.profile.spot_policy
    try:
        policy = _spot_policy(of_fleet, _asked_spot_policy(requirements, run_policy))
    except _Conflict as conflict:
        return NotUsable(str(conflict))
    spot = _spot(policy)
    return requirements if spot is requirements.spot else requirements.model_copy(update={"spot": spot})


def alone(requirements: Requirements, profile: ProfileParams) -> Combined:
    """What a run asks for by itself."""
    return Combined(requirements, _limits(profile), profile.idle_duration, dict(profile.tags or {}))


def of_fleet(fleet: FleetSpec) -> Combined:
    """What a fleet asks for by itself. Without a spot policy: on-demand."""
    configuration = effective_fleet(fleet)
    requirements = Requirements(
        resources=configuration.resources or ResourcesSpec(),
        max_price=configuration.max_price,
        spot=_spot(configuration.spot_policy),
        reservation=configuration.reservation,
        backend_options=configuration.backend_options,
    )
    limits = _limits(configuration)
    return Combined(requirements, limits, configuration.idle_duration, dict(configuration.tags or {}))


def kept(fleet: FleetSpec) -> Combined:
    """What the fleet says about its instances, whoever they were made for: nothing of it is a default."""
    configuration = effective_fleet(fleet)
    anything = ResourcesSpec(cpu=CPUSpec(count=Range[int](min=0)), memory=Range[float](min=0.0), disk=None)
    policy = configuration.spot_policy
    requirements = Requirements(
        resources=configuration.resources or anything,
        max_price=configuration.max_price,
        spot=None if policy is None else _spot(policy),
        reservation=configuration.reservation,
    )
    return Combined(requirements, _limits(configuration))


def effective_fleet(fleet: FleetSpec) -> FleetConfiguration:
    """The configuration in which what it leaves open is taken from the profile."""
    configuration = fleet.configuration.model_copy()
    for name in FleetConfiguration.model_fields.keys() & ProfileParams.model_fields.keys():
        if getattr(configuration, name) is None:
            setattr(configuration, name, getattr(fleet.profile, name))
    return configuration


def _combine(fleet: FleetConfiguration, requirements: Requirements, run: ProfileParams) -> Combined:
    limits = Limits(
        backends=_names("backends", _values(fleet.backends), _values(run.backends)),
        regions=_names("regions", fleet.regions, run.regions),
        availability_zones=_names("availability_zones", fleet.availability_zones, run.availability_zones),
        instance_types=_names("instance_types", fleet.instance_types, run.instance_types),
    )
    policy = _spot_policy(fleet.spot_policy, _asked_spot_policy(requirements, run.spot_policy))
    combined = requirements.model_copy(
        update={
            "resources": combine_resources(fleet.resources, requirements.resources),
            "max_price": _least(fleet.max_price, requirements.max_price),
            "spot": _spot(policy),
            "reservation": _equal("reservation", fleet.reservation, requirements.reservation),
            "backend_options": requirements.backend_options or fleet.backend_options,
        }
    )
    idle_duration = _idle_duration(fleet.idle_duration, run.idle_duration)
    return Combined(combined, limits, idle_duration, {**(fleet.tags or {}), **(run.tags or {})})


def _limits(settings: FleetConfiguration | ProfileParams) -> Limits:
    return Limits(
        backends=_names("backends", _values(settings.backends), None),
        regions=_names("regions", settings.regions, None),
        availability_zones=_names("availability_zones", settings.availability_zones, None),
        instance_types=_names("instance_types", settings.instance_types, None),
    )


def _values(backends: Iterable[object] | None) -> list[str] | None:
    return None if backends is None else [str(getattr(backend, "value", backend)) for backend in backends]


def _names(what: str, fleet: list[str] | None, run: list[str] | None) -> frozenset[str] | None:
    given = [frozenset(name.lower() for name in names) for names in (fleet, run) if names is not None]
    if not given:
        return None
    common = frozenset.intersection(*given)
    if not common and fleet is not None and run is not None:
        raise _Conflict(f"{what}: the fleet has {_listed(fleet)}, the run has {_listed(run)}")
    return common


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _asked_spot_policy(requirements: Requirements, run: SpotPolicy | None) -> SpotPolicy | None:
    """A job that says nothing is on-demand by itself, but takes what the fleet says."""
    if requirements.spot is None:
        return SpotPolicy.AUTO
    if requirements.spot:
        return SpotPolicy.SPOT
    return run


def _spot_policy(fleet: SpotPolicy | None, run: SpotPolicy | None) -> SpotPolicy | None:
    given = [policy for policy in (fleet, run) if policy not in (None, SpotPolicy.AUTO)]
    if len(given) == 2 and given[0] is not given[1]:
        raise _Conflict(f"spot_policy: the fleet has {_shown(fleet)}, the run has {_shown(run)}")
    return given[0] if given else fleet or run


def _spot(policy: SpotPolicy | None) -> bool | None:
    return None if policy is SpotPolicy.AUTO else policy is SpotPolicy.SPOT


def _shown(value: object) -> str:
    return str(getattr(value, "value", value))


def _equal(what: str, fleet: Value | None, run: Value | None) -> Value | None:
    if fleet is not None and run is not None and fleet != run:
        raise _Conflict(f"{what}: the fleet has {_shown(fleet)}, the run has {_shown(run)}")
    return run if fleet is None else fleet


def _least(fleet: float | None, run: float | None) -> float | None:
    return min((value for value in (fleet, run) if value is not None), default=None)


def _idle_duration(fleet: int | None, run: int | None) -> int | None:
    given = [value for value in (fleet, run) if value is not None]
    return min((value for value in given if value != NEVER), default=given[0] if given else None)


def combine_resources(fleet: ResourcesSpec | None, run: ResourcesSpec) -> ResourcesSpec:
    if fleet is None:
        return run
    count = _range("cpu", fleet.cpu.count, run.cpu.count)
    memory = _range("memory", fleet.memory, run.memory)
    assert count is not None
    assert memory is not None
    return ResourcesSpec(
        cpu=CPUSpec(arch=_equal("cpu.arch", fleet.cpu.arch, run.cpu.arch), count=count),
        memory=memory,
        shm_size=_least(fleet.shm_size, run.shm_size),
        gpu=_gpu(fleet.gpu, run.gpu),
        disk=_disk(fleet.disk, run.disk),
    )


def _range(what: str, fleet: Range[Number] | None, run: Range[Number] | None) -> Range[Number] | None:
    if fleet is None or run is None:
        return fleet or run
    common = fleet.intersection(run)
    if common is None:
        raise _Conflict(f"{what}: the fleet has {fleet}, the run needs {run}")
    return common


def _disk(fleet: DiskSpec | None, run: DiskSpec | None) -> DiskSpec | None:
    size = _range("disk", fleet.size if fleet else None, run.size if run else None)
    return None if size is None else DiskSpec(size=size)


def _gpu(fleet: GPUSpec | None, run: GPUSpec | None) -> GPUSpec | None:
    if fleet is None or run is None:
        return fleet or run
    count = _range("gpu.count", fleet.count, run.count)
    assert count is not None
    capabilities = [spec.compute_capability for spec in (fleet, run) if spec.compute_capability is not None]
    return GPUSpec(
        vendor=_equal("gpu.vendor", fleet.vendor, run.vendor),
        name=_gpu_names(fleet.name, run.name),
        count=count,
        memory=_range("gpu.memory", fleet.memory, run.memory),
        total_memory=_range("gpu.total_memory", fleet.total_memory, run.total_memory),
        compute_capability=max(capabilities, default=None),
    )


def _gpu_names(fleet: list[str] | None, run: list[str] | None) -> list[str] | None:
    if fleet is None or run is None:
        return run if fleet is None else fleet
    allowed = _names("gpu.name", fleet, run) or frozenset()
    return [name for name in run if name.lower() in allowed]
