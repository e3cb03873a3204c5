"""`dstack offer`: what compute there is for some requirements, and what it costs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dstack.cli.context import Context, connect
from dstack.cli.errors import CliError
from dstack.cli.overrides import add_offer_arguments, add_profile_arguments, add_resource_arguments

MAX_OFFERS = 50
GROUPINGS = ("gpu", "backend", "region", "count")

Document = dict[str, Any]


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--format", choices=("plain", "json"), default="plain", help="The form of the output")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="Same as --format json")
    parser.add_argument(
        "--group-by", action="append", metavar="FIELD", help="gpu, with backend, region or count (repeatable)"
    )
    add_offer_arguments(parser, max_offers=MAX_OFFERS)
    add_resource_arguments(parser)
    add_profile_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    groups = _parse_groups(args.group_by)
    context = connect(args)
    spec = _make_spec(args)
    plan = context.rest.runs.get_plan(
        context.project,
        spec,
        max_offers=args.max_offers,
        full_offers=args.full_offers,
        unallocated=args.unallocated,
        for_offers_only=True,
    )
    if groups:
        _print_groups(context, args, spec, plan, groups)
    else:
        _print_offers(plan, args)
    return 0


def _parse_groups(values: list[str] | None) -> list[str]:
    groups = [word.strip() for value in values or [] for word in value.split(",")]
    for group in groups:
        if group not in GROUPINGS:
            raise CliError(f"Offers cannot be grouped by {group!r}; choose from {', '.join(GROUPINGS)}")
    if groups and "gpu" not in groups:
        raise CliError("--group-by must hold gpu")
    if "region" in groups and "backend" not in groups:
        raise CliError("--group-by region needs backend too")
    return groups


def _make_spec(args: argparse.Namespace) -> Document:
    """A task that is never run, whose offers are asked for."""
    from dstack.api.wire import dump_run_spec
    from dstack.cli.applying.configure import parse_with_flags
    from dstack.cli.files import load_profile
    from dstack.cli.overrides import chosen_profile, profile_fields, resource_fields
    from dstack.core.configurations.profiles import Profile
    from dstack.core.runs import RunSpec

    resources = {"cpu": "1..", "memory": "0..", "gpu": "0..", "disk": None} | resource_fields(args)
    task = {"type": "task", "commands": [":"], "image": "scratch", "user": "root", "resources": resources}
    name = chosen_profile(args)
    profile = Profile(name="default") if name is False else load_profile(name if isinstance(name, str) else None)
    return dump_run_spec(RunSpec(configuration=parse_with_flags(task | profile_fields(args)), profile=profile))


def _print_offers(plan: Document, args: argparse.Namespace) -> None:
    from dstack.cli.output.plans import print_offers
    from dstack.cli.output.tables import print_properties

    job_plan = plan["job_plans"][0]
    if args.format == "json":
        print(json.dumps(_describe(plan), indent=2))
        return
    requirements = _requirements(plan)
    print_properties(
        [
            ("Project", plan["project_name"]),
            ("User", plan["user"]),
            ("Resources", _format_requirements(requirements)),
            ("Spot policy", _format_spot_policy(requirements["spot"])),
            ("Max price", "off" if requirements["max_price"] is None else f"${requirements['max_price']:g}"),
        ]
    )
    print()
    print_offers(job_plan["offers"], total=job_plan["total_offers"])


def _format_requirements(requirements: Document) -> str:
    from dstack.cli.output.values import format_requirements

    return format_requirements(requirements["resources"])


def _format_spot_policy(spot: bool | None) -> str:
    return "auto" if spot is None else "spot" if spot else "on-demand"


def _requirements(plan: Document) -> Document:
    requirements = plan["job_plans"][0]["job_spec"]["requirements"]
    return {name: requirements.get(name) for name in ("resources", "max_price", "spot", "reservation")}


def _describe(plan: Document) -> Document:
    job_plan = plan["job_plans"][0]
    offers = [
        {
            "backend": offer["backend"],
            "region": offer["region"],
            "instance_type": offer["instance"]["name"],
            "resources": offer["instance"]["resources"],
            "spot": offer["instance"]["resources"]["spot"],
            "price": offer["price"],
            "availability": offer["availability"],
        }
        for offer in job_plan["offers"]
    ]
    return {
        "project": plan["project_name"],
        "user": plan["user"],
        "requirements": _requirements(plan),
        "offers": offers,
        "total_offers": job_plan["total_offers"],
    }


def _print_groups(
    context: Context, args: argparse.Namespace, spec: Document, plan: Document, groups: list[str]
) -> None:
    within_gpu = [group for group in groups if group != "gpu"]
    gpus = context.rest.runs.list_gpus(
        context.project, spec, within_gpu, full_offers=args.full_offers, unallocated=args.unallocated
    )
    if args.format == "json":
        document = {
            "project": context.project,
            "requirements": _requirements(plan),
            "group_by": groups,
            "gpus": gpus,
        }
        print(json.dumps(document, indent=2))
        return
    from dstack.cli.output.gpus import print_gpus

    print_gpus(gpus, groups)
