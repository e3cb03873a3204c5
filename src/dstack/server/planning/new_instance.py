"""The values of the row of a new instance. Its name and what is needed of it are on record before it is made."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from dstack.core.canonical import dump_json
from dstack.core.configurations.profiles import DEFAULT_FLEET_IDLE_DURATION
from dstack.core.instances import InstanceStatus
from dstack.server.planning.combining import Combined
from dstack.server.planning.offers import Limits

PROVISIONING_TIMEOUT = timedelta(minutes=10)


def instance_values(
    terms: Combined,
    *,
    fleet_id: UUID,
    fleet_name: str,
    project_id: UUID,
    num: int,
    now: datetime,
    place: Sequence[str] | None = None,
) -> dict[str, Any]:
    """`terms`: what its fleet asks for, together with the job that it is made for, if it is. `place`: where that
    job's volumes are."""
    idle = terms.idle_duration
    return {
        "id": uuid.uuid4(),
        "project_id": project_id,
        "fleet_id": fleet_id,
        "name": f"{fleet_name}-{num}",
        "instance_num": num,
        "status": InstanceStatus.PENDING.value,
        "created_at": now,
        "last_processed_at": now,
        "requirements": dump_json(terms.requirements),
        "profile": json.dumps(_limits_as_data(terms.limits) | {"tags": terms.tags, "place": place}),
        "idle_duration": DEFAULT_FLEET_IDLE_DURATION if idle is None else idle,
        "provisioning_deadline": now + PROVISIONING_TIMEOUT,
    }


_LIMITED = ("backends", "regions", "availability_zones", "instance_types")


def _limits_as_data(limits: Limits) -> dict[str, Any]:
    return {name: _sorted(getattr(limits, name)) for name in _LIMITED}


def _sorted(names: Iterable[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)


def limits_of(profile: Mapping[str, Any]) -> Limits:
    """Those that `instance_values` put into a row's `profile`."""
    given = {name: profile.get(name) for name in _LIMITED}
    return Limits(**{name: None if names is None else frozenset(names) for name, names in given.items()})
