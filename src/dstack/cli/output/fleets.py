"""Fleets as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dstack.cli.output.tables import print_notes, print_table
from dstack.cli.output.values import (
    format_age,
    format_backend,
    format_gpus,
    format_price,
    format_range,
    format_requirements,
    format_resources,
    format_spot,
    now_utc,
)

Document = Mapping[str, Any]


def print_fleets(fleets: Sequence[Document], project: str, *, verbose: bool = False) -> None:
    """A table of the fleets and their instances; below it, what is wrong with any of them."""
    now = now_utc()
    rows = [row for fleet in fleets for row in fleet_rows(fleet, project, now, verbose=verbose)]
    print_table(fleet_headers(verbose=verbose), rows, keep=("NAME", "STATUS"))
    print_notes([note for fleet in fleets for note in fleet_notes(fleet, project)])


def fleet_headers(*, verbose: bool) -> list[str]:
    """The columns of `fleet list`."""
    if verbose:
        hardware = ["RESOURCES", "DRIVER"]
        return ["NAME", "NODES", *hardware, "SPOT", "BACKEND", "PRICE", "STATUS", "CREATED", "ERROR"]
    return ["NAME", "NODES", "GPU", "SPOT", "BACKEND", "PRICE", "STATUS", "CREATED"]


def fleet_rows(fleet: Document, project: str, now: datetime, *, verbose: bool) -> list[list[str]]:
    """A row for the fleet, then one for each of its instances."""
    cells = [_fleet_cells(fleet, project, now), *(_instance_cells(item, now) for item in fleet["instances"])]
    return [[row.get(header, "") for header in fleet_headers(verbose=verbose)] for row in cells]


def fleet_notes(fleet: Document, project: str) -> list[str]:
    """What is wrong, one text an instance: a table has no room for it."""
    name = _format_name(fleet, project)
    return [_format_note(name, one) for one in fleet["instances"] if _reason(one) or one.get("unreachable")]


def _format_note(fleet_name: str, instance: Document) -> str:
    facts = [instance.get("hostname"), _format_use(instance) if instance.get("unreachable") else None]
    known = ", ".join(fact for fact in facts if fact)
    where = f"{fleet_name} instance={instance['instance_num']}" + (f" ({known})" if known else "")
    return f"{where}: {_reason(instance) or 'does not answer'}"


def _reason(instance: Document) -> str:
    return str(instance.get("termination_reason_message") or instance.get("termination_reason") or "")


def _format_name(fleet: Document, project: str) -> str:
    is_own = fleet["project_name"] == project
    return str(fleet["name"]) if is_own else f"{fleet['project_name']}/{fleet['name']}"


def _fleet_cells(fleet: Document, project: str, now: datetime) -> dict[str, str]:
    configuration = fleet["spec"]["configuration"]
    resources = configuration.get("resources")
    return {
        "NAME": _format_name(fleet, project),
        "NODES": _format_nodes(configuration),
        "RESOURCES": format_requirements(resources) if resources else "",
        "GPU": _format_gpu_need(resources),
        "SPOT": configuration.get("spot_policy") or "",
        "BACKEND": _format_backends(configuration),
        "STATUS": fleet.get("status_message") or fleet["status"],
        "CREATED": format_age(fleet["created_at"], now),
    }


def _format_nodes(configuration: Document) -> str:
    ssh_config = configuration.get("ssh_config")
    if ssh_config is not None:
        return str(len(ssh_config["hosts"]))
    return format_range(configuration.get("nodes"))


def _format_gpu_need(resources: Document | None) -> str:
    if resources is None:
        return ""
    words = format_requirements(resources).split(" gpu=")
    return words[1] if len(words) > 1 else ""


def _format_backends(configuration: Document) -> str:
    if configuration.get("ssh_config") is not None:
        return "ssh"
    backends = configuration.get("backends") or []
    return ", ".join("local" if backend == "remote" else backend for backend in backends) or "*"


def _instance_cells(instance: Document, now: datetime) -> dict[str, str]:
    instance_type = instance.get("instance_type")
    resources = instance_type["resources"] if instance_type else None
    driver = instance.get("gpu_driver") or {}
    return {
        "NAME": f"   instance={instance['instance_num']}",
        "RESOURCES": format_resources(resources) if resources else "",
        "DRIVER": str(driver.get("version") or ""),
        "GPU": format_gpus(resources["gpus"]) if resources else "",
        "SPOT": format_spot(resources) if resources and instance.get("backend") != "remote" else "",
        "BACKEND": format_backend(instance.get("backend"), instance.get("region")),
        "PRICE": format_price(instance.get("price")),
        "STATUS": _format_status(instance),
        "CREATED": format_age(instance["created"], now),
        "ERROR": _reason(instance),
    }


def _format_status(instance: Document) -> str:
    if instance.get("unreachable"):
        return "unreachable"
    status = _format_use(instance)
    health = instance.get("health_status") or "healthy"
    return status if health == "healthy" else f"{status} ({health})"


def _format_use(instance: Document) -> str:
    status = str(instance["status"])
    total, busy = instance.get("total_blocks") or 1, instance.get("busy_blocks") or 0
    return f"{busy}/{total} busy" if status in ("idle", "busy") and total > 1 else status
