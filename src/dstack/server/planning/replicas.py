"""Of a service's run spec: its groups of replicas, and which jobs a new spec leaves as they are. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from dstack.core.configurations.scaling import ScalingSpec
from dstack.core.configurations.service import ServiceConfiguration
from dstack.core.images import Images
from dstack.core.job_specs import make_job_specs
from dstack.core.jobs import JobSpec
from dstack.core.runs import RunSpec

ONLY_GROUP = "0"
"""The name of the group of a service that has no groups."""


@dataclass(frozen=True)
class ReplicaGroupPlan:
    """How many replicas a group may have, and what decides."""

    name: str
    low: int
    high: int
    scaling: ScalingSpec | None = None


def groups_of(run_spec: Mapping[str, Any]) -> list[ReplicaGroupPlan]:
    """`run_spec`: the stored document of a service, read without its models because this is done often."""
    configuration = run_spec["configuration"]
    groups = configuration.get("groups")
    if not groups:
        return [_group(ONLY_GROUP, configuration.get("replicas"), configuration.get("scaling"))]
    return [_group(group["name"], group["replicas"], group.get("scaling")) for group in groups]


def _group(name: str, replicas: Mapping[str, int] | None, scaling: Mapping[str, Any] | None) -> ReplicaGroupPlan:
    if replicas is None:
        return ReplicaGroupPlan(name, 1, 1)
    rule = None if scaling is None else ScalingSpec.model_validate(scaling, extra="ignore")
    low = replicas.get("min") or 0
    return ReplicaGroupPlan(name, low, max(low, replicas.get("max") or 0), rule)


def same_jobs(rows: Iterable[tuple[UUID, str]], spec: RunSpec, *, run_name: str, images: Images) -> list[UUID]:
    """Of jobs with the texts of their specs: those that `spec` would give the very same spec."""
    jobs = [(id, JobSpec.model_validate_json(text, extra="ignore")) for id, text in rows]
    return [id for id, job in jobs if _is_same(job, spec, run_name, images)]


def _is_same(job: JobSpec, spec: RunSpec, run_name: str, images: Images) -> bool:
    configuration = spec.configuration
    if isinstance(configuration, ServiceConfiguration):
        names = [group.name for group in configuration.groups or ()] or [ONLY_GROUP]
        if job.replica_group not in names:
            return False
    wanted = make_job_specs(
        spec, run_name=run_name, images=images, replica_num=job.replica_num, replica_group=job.replica_group
    )
    if job.job_num >= len(wanted):
        return False
    return wanted[job.job_num].model_copy(update={"ssh_key": job.ssh_key}) == job


def takes_requests(run_spec: str, group: str) -> bool:
    """Whether requests are sent to the replicas of a group: where one routes them to the others, only to that."""
    if '"router":{' not in run_spec:
        return True
    groups = json.loads(run_spec)["configuration"].get("groups") or ()
    return group in [one["name"] for one in groups if one.get("router") is not None]


def is_ready(probes: Sequence[Mapping[str, Any]], streaks: str | None, *, listens: bool) -> bool:
    """`probes`: of a job spec; `streaks`: the JSON of their streaks of success, None before there are any.

    Without probes a replica is ready once it `listens`.
    """
    if not probes:
        return listens
    counts = json.loads(streaks or "[]")
    return len(counts) >= len(probes) and all(
        count >= probe["ready_after"] for count, probe in zip(counts, probes, strict=False)
    )
