"""Waiting for what the server does in its own time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dstack.cli.context import Context
from dstack.cli.output.live import Status
from dstack.core.errors import ResourceNotExists

DELETE_POLL_INTERVAL = 0.5
"""Seconds."""


def delete_fleet(context: Context, name: str, instances: Sequence[int] = ()) -> None:
    """Deletes the fleet, or some of its instances, and returns when they are gone."""
    if instances:
        context.rest.fleets.delete_instances(context.project, name, instances)
    else:
        context.rest.fleets.delete(context.project, [name])
    status = Status()
    try:
        while not _is_gone(context, name, instances):
            status.show(f"Deleting {name}…")
            time.sleep(DELETE_POLL_INTERVAL)
    finally:
        status.clear()


def _is_gone(context: Context, name: str, instances: Sequence[int]) -> bool:
    try:
        fleet = context.rest.fleets.get(context.project, name=name)
    except ResourceNotExists:
        return True
    left = {instance["instance_num"] for instance in fleet["instances"] if instance["status"] != "terminated"}
    return bool(instances) and not left & set(instances)
