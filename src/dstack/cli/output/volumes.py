"""Volumes as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dstack.cli.output.values import format_age

Document = Mapping[str, Any]


def volume_headers(*, verbose: bool) -> list[str]:
    """The columns of `volume list`."""
    if verbose:
        return ["NAME", "BACKEND", "REGION", "STATUS", "ATTACHED", "CREATED", "ERROR"]
    return ["NAME", "BACKEND", "STATUS", "CREATED"]


def volume_row(volume: Document, headers: Sequence[str], now: datetime) -> list[str]:
    """The cells of these columns."""
    configuration = volume["configuration"]
    region = configuration.get("region") or ""
    backend = str(configuration["backend"])
    cells = {
        "NAME": volume["name"],
        "BACKEND": backend if "REGION" in headers or not region else f"{backend} ({region})",
        "REGION": region,
        "STATUS": volume["status"],
        "ATTACHED": ", ".join(_attached(one) for one in volume.get("attachments") or []),
        "CREATED": format_age(volume["created_at"], now),
        "ERROR": volume.get("status_message") or "",
    }
    return [cells[header] for header in headers]


def _attached(attachment: Document) -> str:
    instance = attachment["instance"]
    fleet = instance.get("fleet_name")
    return f"{fleet} ({instance['instance_num']})" if fleet else str(instance["name"])
