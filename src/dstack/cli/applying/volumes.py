"""`dstack apply` of volumes."""

from __future__ import annotations

import argparse
import time
from typing import Any

from dstack.cli.applying.configure import rename
from dstack.cli.context import Context
from dstack.cli.files import ConfigurationFile
from dstack.cli.output.live import Status
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_properties, print_table
from dstack.cli.output.values import now_utc
from dstack.cli.output.volumes import volume_headers, volume_row
from dstack.cli.waiting import delete_volume
from dstack.core.errors import ResourceNotExists

POLL_INTERVAL = 2.0
"""Seconds."""
SETTLED = ("active", "failed")

Document = dict[str, Any]


def apply_volume(context: Context, file: ConfigurationFile, args: argparse.Namespace) -> int:
    """Shows, asks, creates and waits until the volume is there; the exit status."""
    configuration = rename(file.configuration, args.name).model_dump(mode="json")
    user = context.rest.users.get_my_user()["username"]
    current = _find(context, configuration["name"])
    _print_plan(context.project, user, configuration)
    if not (args.yes or confirm(_question(configuration["name"], current))):
        return 0
    if current is not None:
        if args.yes and not args.force and current["configuration"] == configuration:
            name = configuration["name"]
            print(f"The volume {name} exists and nothing has changed. Pass --force to delete and create it again.")
            return 0
        delete_volume(context, configuration["name"])
    volume = context.rest.volumes.create(context.project, configuration)
    if args.detach:
        print(f"Volume {volume['name']} is submitted.")
        return 0
    return _wait(context, volume)


def _find(context: Context, name: str | None) -> Document | None:
    if name is None:
        return None
    try:
        return context.rest.volumes.get(context.project, name)
    except ResourceNotExists:
        return None


def _question(name: str | None, current: Document | None) -> str:
    if current is None:
        return f"Create the volume {name}?" if name else "Create the volume?"
    return f"The volume {name} exists. Delete it with what is on it, and create it again?"


def _print_plan(project: str, user: str, configuration: Document) -> None:
    size = configuration.get("size")
    shown = [
        ("Project", project),
        ("User", user),
        ("Type", "volume"),
        ("Backend", configuration["backend"]),
        ("Region", configuration.get("region")),
        ("Availability zone", configuration.get("availability_zone")),
        ("Size", f"{size:g}GB" if size is not None else None),
        ("Volume ID", configuration.get("volume_id")),
        ("Claim", configuration.get("claim_name")),
    ]
    print_properties([(name, value) for name, value in shown if value])
    print()


def _wait(context: Context, volume: Document) -> int:
    status = Status()
    try:
        while volume["status"] not in SETTLED:
            status.show(f"{volume['name']}: {volume['status']}…")
            time.sleep(POLL_INTERVAL)
            volume = context.rest.volumes.get(context.project, volume["name"])
    except KeyboardInterrupt:
        status.clear()
        print(f"Left the volume {volume['name']}; see it with `dstack volume`.")
        return 0
    finally:
        status.clear()
    headers = volume_headers(verbose=False)
    print_table(headers, [volume_row(volume, headers, now_utc())])
    if volume["status"] == "failed":
        print(
            f"The volume {volume['name']} failed: {volume.get('status_message') or 'the server does not say why'}"
        )
        return 1
    return 0
