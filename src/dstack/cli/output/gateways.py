"""Gateways as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dstack.cli.output.values import format_age, format_backend

Document = Mapping[str, Any]


def gateway_headers(*, verbose: bool) -> list[str]:
    """The columns of `gateway list`."""
    further = ["CREATED", "ERROR"] if verbose else []
    return ["NAME", "BACKEND", "HOSTNAME", "DOMAIN", "DEFAULT", "STATUS", *further]


def gateway_rows(gateway: Document, project: str, headers: Sequence[str], now: datetime) -> list[list[str]]:
    """A row for the gateway, and one for each of its machines where it has several."""
    cells = [_gateway_cells(gateway, project, now)]
    replicas = gateway.get("replicas") or []
    if len(replicas) > 1:
        cells += [_replica_cells(replica, now) for replica in replicas]
    return [[row.get(header, "") for header in headers] for row in cells]


def _gateway_cells(gateway: Document, project: str, now: datetime) -> dict[str, str]:
    configuration, owner = gateway["configuration"], gateway["project_name"]
    return {
        "NAME": gateway["name"] if owner == project else f"{owner}/{gateway['name']}",
        "BACKEND": format_backend(configuration["backend"], configuration["region"]),
        "HOSTNAME": gateway.get("hostname") or gateway.get("ip_address") or "",
        "DOMAIN": gateway.get("wildcard_domain") or configuration.get("domain") or "",
        "DEFAULT": "✓" if gateway["default"] else "",
        "STATUS": gateway["status"],
        "CREATED": format_age(gateway["created_at"], now),
        "ERROR": gateway.get("status_message") or "",
    }


def _replica_cells(replica: Document, now: datetime) -> dict[str, str]:
    return {
        "NAME": f"   replica={replica['replica_num']}",
        "BACKEND": format_backend(replica.get("backend"), replica.get("region")),
        "HOSTNAME": replica.get("hostname") or "",
        "STATUS": replica["status"],
        "CREATED": format_age(replica["created_at"], now),
        "ERROR": replica.get("status_message") or "",
    }
