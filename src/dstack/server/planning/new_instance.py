"""The values of the row of a new instance. Its name and what is needed of it are on record before it is made."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from dstack.core.canonical import dump_json
from dstack.core.configurations.profiles import DEFAULT_FLEET_IDLE_DURATION
from dstack.core.instances import InstanceStatus, Requirements
from dstack.core.resources import ResourcesSpec

PROVISIONING_TIMEOUT = timedelta(minutes=10)


def instance_values(
    *,
    fleet_spec: Mapping[str, Any],
    fleet_id: UUID,
    fleet_name: str,
    project_id: UUID,
    num: int,
    now: datetime,
    requirements: Requirements | None = None,
    limits: Mapping[str, Any] | None = None,
    idle_duration: int | None = None,
) -> dict[str, Any]:
    """`requirements`, `limits`: of the job it is made for; without, those of the fleet. `idle_duration`: the
    run's, in seconds, -1 for never; the shorter one of it and the fleet's holds."""
    configuration = fleet_spec["configuration"]
    needed = requirements or _fleet_requirements(configuration)
    return {
        "id": uuid.uuid4(),
        "project_id": project_id,
        "fleet_id": fleet_id,
        "name": f"{fleet_name}-{num}",
        "instance_num": num,
        "status": InstanceStatus.PENDING.value,
        "created_at": now,
        "last_processed_at": now,
        "requirements": None if needed is None else dump_json(needed),
        "profile": json.dumps(dict(limits or {})),
        "idle_duration": shorter_idle(configuration.get("idle_duration"), idle_duration),
        "provisioning_deadline": now + PROVISIONING_TIMEOUT,
    }


def _fleet_requirements(configuration: Mapping[str, Any]) -> Requirements | None:
    resources = configuration.get("resources")
    if resources is None:
        return None
    spec = ResourcesSpec.model_validate(resources, extra="ignore")
    return Requirements(resources=spec, max_price=configuration.get("max_price"))


def shorter_idle(fleet: int | None, run: int | None) -> int:
    """Seconds; -1 (never) loses to a set duration."""
    set_ones = [one for one in (fleet, run) if one is not None and one >= 0]
    if set_ones:
        return min(set_ones)
    return -1 if -1 in (fleet, run) else DEFAULT_FLEET_IDLE_DURATION
