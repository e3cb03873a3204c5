"""Keeps what agents tell of their hosts' health: one row a change, the instance's own status, and an event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from dstack.core.events import EventTargetType
from dstack.core.instances import HealthStatus
from dstack.server import events
from dstack.server.db.engine import Database
from dstack.server.db.queries import health as queries
from dstack.server.db.tables import InstanceHealthCheckRow


async def record(database: Database, instance_id: UUID, told: Mapping[str, Any], now: datetime) -> None:
    """`told`: `Event.health`. Agents tell it again after each reconnection: what is known is not written."""
    status, problems = HealthStatus(told["status"]).value, json.dumps(told["problems"], sort_keys=True)
    async with database.session() as session:
        known = await queries.find_newest(session, instance_id)
    if known is not None and (known.status, known.problems) == (status, problems):
        return
    check = InstanceHealthCheckRow(instance_id=instance_id, collected_at=now, status=status, problems=problems)
    async with database.transaction() as session:
        instance = await queries.add(session, check)
        if instance is None or instance.health == status:
            return
        text = f"Instance health changed {instance.health.upper()} -> {status.upper()}"
        reasons = "; ".join(problem["message"] for problem in told["problems"])
        target = events.Target(EventTargetType.INSTANCE.value, instance_id, instance.name, instance.project_id)
        await events.record(session, f"{text} ({reasons})" if reasons else text, actor=None, targets=[target])
