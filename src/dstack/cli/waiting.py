"""Waiting for what the server does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

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
    _wait_until_gone(
        name,
        lambda: context.rest.fleets.get(context.project, name=name),
        lambda fleet: bool(instances) and not _left(fleet) & set(instances),
    )


def delete_volume(context: Context, name: str) -> None:
    """Deletes the volume and returns when it is gone."""
    context.rest.volumes.delete(context.project, [name])
    _wait_until_gone(name, lambda: context.rest.volumes.get(context.project, name))


def delete_gateway(context: Context, name: str) -> None:
    """Deletes the gateway and returns when it is gone."""
    context.rest.gateways.delete(context.project, [name])
    _wait_until_gone(name, lambda: context.rest.gateways.get(context.project, name))


def _left(fleet: dict[str, Any]) -> set[int]:
    return {instance["instance_num"] for instance in fleet["instances"] if instance["status"] != "terminated"}


def _wait_until_gone(
    name: str, get: Callable[[], dict[str, Any]], is_over: Callable[[dict[str, Any]], bool] = lambda _: False
) -> None:
    status = Status()
    try:
        while not is_over(get()):
            status.show(f"Deleting {name}…")
            time.sleep(DELETE_POLL_INTERVAL)
    except ResourceNotExists:
        return
    finally:
        status.clear()
