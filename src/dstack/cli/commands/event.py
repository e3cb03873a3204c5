"""`dstack event`: what happened in a project, and who did it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from dstack.cli.arguments import parse_since
from dstack.cli.completers import completes
from dstack.cli.context import Context, connect
from dstack.cli.errors import CliError
from dstack.cli.output.live import POLL_INTERVAL
from dstack.cli.output.values import parse_time

PAGE = 100
TYPES = (
    *("project", "user", "fleet", "instance", "run", "job"),
    *("volume", "gateway", "gateway-replica", "secret", "preset"),
)


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    _add_arguments(parser, default=None)
    _add_arguments(actions.add_parser("list", help="Show events"), default=argparse.SUPPRESS)


def _add_arguments(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    parser.add_argument(
        "-w", "--watch", action="store_true", default=default or False, help="Go on showing new ones"
    )
    parser.add_argument(
        "--since",
        type=parse_since,
        metavar="T",
        default=default,
        help="A duration or time (default: the last 100)",
    )
    for kind in ("fleet", "run", "volume", "gateway", "secret"):
        _add_names(parser, "target", kind, f"Only events about this {kind}", default)
    for kind in ("fleet", "run", "gateway"):
        _add_names(parser, "within", kind, f"Only events about this {kind} and what is in it", default)
    parser.add_argument(
        "--include-target-type",
        action="append",
        choices=TYPES,
        metavar="TYPE",
        default=default,
        help=f"Only events about this type: {', '.join(TYPES)} (repeatable)",
    )


def _add_names(parser: argparse.ArgumentParser, how: str, kind: str, text: str, default: str | None) -> None:
    names = parser.add_argument(
        f"--{how}-{kind}", action="append", metavar="NAME", default=default, help=f"{text} (repeatable)"
    )
    completes(names, f"{kind}s")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    context = connect(args)
    filters = _filters(context, args)
    last: dict[str, Any] | None = None
    for event in _first_events(context, filters, args.since):
        print(format_event(event))
        last = event
    while args.watch:
        time.sleep(POLL_INTERVAL)
        for event in _events_after(context, filters, last):
            print(format_event(event), flush=True)
            last = event
    return 0


def format_event(event: dict[str, Any]) -> str:
    """`[time] [👤user] [type name, …] text`, in local time."""
    moment = parse_time(event["recorded_at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    user = f" [👤{event['actor_user']}]" if event.get("actor_user") else ""
    targets = ", ".join(f"{target['type']} {target['name']}" for target in event["targets"])
    return f"[{moment}]{user} [{targets}] {event['message']}"


def _first_events(context: Context, filters: dict[str, Any], since: str | None) -> Iterator[dict[str, Any]]:
    if since is None:
        yield from reversed(context.rest.events.list(filters))
    else:
        yield from _events_after(context, filters, {"recorded_at": since, "id": None})


def _events_after(
    context: Context, filters: dict[str, Any], last: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Events younger than the last one, the oldest first."""
    while True:
        position = {"prev_recorded_at": last["recorded_at"], "prev_id": last["id"]} if last else {}
        page = context.rest.events.list(filters | position | {"ascending": True})
        yield from page
        if len(page) < PAGE:
            return
        last = page[-1]


def _filters(context: Context, args: argparse.Namespace) -> dict[str, Any]:
    filters: dict[str, Any] = {
        "target_fleets": _fleet_ids(context, args.target_fleet),
        "target_runs": _run_ids(context, args.target_run),
        "target_secrets": _secret_ids(context, args.target_secret),
        "target_volumes": _listed_ids(context, "volumes", args.target_volume),
        "target_gateways": _listed_ids(context, "gateways", args.target_gateway),
        "within_fleets": _fleet_ids(context, args.within_fleet),
        "within_runs": _run_ids(context, args.within_run),
        "include_target_types": args.include_target_type,
    }
    if args.within_gateway:
        filters["within_gateways"] = _listed_ids(context, "gateways", args.within_gateway)
    if all(value is None for key, value in filters.items() if key != "include_target_types"):
        filters["within_projects"] = [context.rest.projects.get(context.project)["project_id"]]
    return filters


def _fleet_ids(context: Context, names: list[str] | None) -> list[str] | None:
    return names and [context.rest.fleets.get(context.project, name=name)["id"] for name in names]


def _run_ids(context: Context, names: list[str] | None) -> list[str] | None:
    return names and [context.rest.runs.get(context.project, name=name)["id"] for name in names]


def _secret_ids(context: Context, names: list[str] | None) -> list[str] | None:
    return names and [context.rest.secrets.get(context.project, name)["id"] for name in names]


def _listed_ids(context: Context, kind: str, names: list[str] | None) -> list[str] | None:
    if not names:
        return None
    listed = getattr(context.rest, kind).list(context.project)
    ids = {item["name"]: item["id"] for item in listed}
    for name in names:
        if name not in ids:
            raise CliError(f"There is no {kind.removesuffix('s')} {name!r} in the project {context.project}")
    return [ids[name] for name in names]
