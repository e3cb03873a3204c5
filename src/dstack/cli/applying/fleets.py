"""`dstack apply` of fleets."""

from __future__ import annotations

import argparse
import time
from typing import Any

from dstack.api.wire import dump_current_fleet, dump_fleet_spec
from dstack.cli.applying.configure import configure_fleet
from dstack.cli.applying.ssh_keys import read_keys
from dstack.cli.context import Context
from dstack.cli.files import ConfigurationFile
from dstack.cli.output.fleets import print_fleets
from dstack.cli.output.live import Status
from dstack.cli.output.plans import print_changes, print_offers
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_properties
from dstack.cli.output.values import format_range, format_requirements
from dstack.cli.waiting import delete_fleet
from dstack.core.configurations import FleetConfiguration
from dstack.core.configurations.profiles import Profile
from dstack.core.diff import can_update_fleet, changed_fleet_fields
from dstack.core.fleets import FleetPlan, FleetSpec

MAX_OFFERS = 3
SHOWN_HOSTS = 8
POLL_INTERVAL = 2.0
"""Seconds."""
UNSETTLED = ("pending", "provisioning", "terminating")

Document = dict[str, Any]


def apply_fleet(context: Context, file: ConfigurationFile, args: argparse.Namespace) -> int:
    """Plans, asks, applies and waits until the instances are there; the exit status."""
    spec = _make_spec(file, args)
    answer = context.rest.fleets.get_plan(context.project, dump_fleet_spec(spec))
    plan = FleetPlan.model_validate(answer, extra="ignore")
    _print_plan(answer)
    if not _is_agreed(plan, answer, args):
        return 0
    current = plan.current_resource
    if current is not None and not can_update_fleet(current.spec, plan.effective_spec or plan.spec):
        delete_fleet(context, current.name)
        current = None
    fleet = context.rest.fleets.apply(
        context.project,
        dump_fleet_spec(spec),
        None if current is None else dump_current_fleet(current),
        force=args.force,
    )
    if args.detach:
        print(f"Fleet {fleet['name']} is submitted.")
        return 0
    return _wait(context, fleet)


def _make_spec(file: ConfigurationFile, args: argparse.Namespace) -> FleetSpec:
    assert isinstance(file.configuration, FleetConfiguration)
    configuration = configure_fleet(file.configuration, args)
    if configuration.ssh_config is not None:
        read_keys(configuration.ssh_config, args.ssh_identity)
    return FleetSpec(configuration=configuration, configuration_path=file.path, profile=Profile(name="default"))


def _print_plan(answer: Document) -> None:
    spec = answer.get("effective_spec") or answer["spec"]
    configuration = spec["configuration"]
    ssh = configuration.get("ssh_config")
    properties = [("Project", answer["project_name"]), ("User", answer["user"]), ("Type", "fleet")]
    if ssh is not None:
        hosts = [host if isinstance(host, str) else host["hostname"] for host in ssh["hosts"]]
        more = f" and {len(hosts) - SHOWN_HOSTS} more" if len(hosts) > SHOWN_HOSTS else ""
        properties.append(("Hosts", ", ".join(hosts[:SHOWN_HOSTS]) + more))
    else:
        properties.append(("Nodes", format_range(configuration.get("nodes"))))
        if configuration.get("resources"):
            properties.append(("Resources", format_requirements(configuration["resources"])))
        properties.append(("Spot policy", configuration.get("spot_policy") or "on-demand"))
    print_properties(properties)
    print()
    if ssh is None:
        print_offers(answer["offers"][:MAX_OFFERS], total=answer["total_offers"])


def _is_agreed(plan: FleetPlan, answer: Document, args: argparse.Namespace) -> bool:
    current, spec = plan.current_resource, plan.effective_spec or plan.spec
    if current is None:
        return args.yes or confirm(f"Create the fleet {plan.spec.configuration.name or ''}?".replace(" ?", "?"))
    changes = changed_fleet_fields(current.spec, spec)
    if not changes and args.yes and not args.force:
        print(f"The fleet {current.name} exists and nothing has changed. Pass --force to apply it again.")
        return False
    if not changes:
        return args.yes or confirm(f"The fleet {current.name} exists and nothing has changed. Apply it again?")
    new = answer.get("effective_spec") or answer["spec"]
    print_changes(
        f"The fleet {current.name} exists. What changes:", answer["current_resource"]["spec"], new, changes
    )
    if can_update_fleet(current.spec, spec):
        return args.yes or confirm(f"Update the fleet {current.name} in place?")
    return args.yes or confirm(f"The changes need a new fleet. Delete {current.name} and create it again?")


def _progress(fleet: Document) -> str:
    """How many are there, and what is wrong with the first that is not."""
    instances = fleet["instances"]
    waiting = [one for one in instances if one["status"] in UNSETTLED]
    problem = next((one for one in waiting if one.get("termination_reason_message")), None)
    told = f"{fleet['name']}: {len(instances) - len(waiting)} of {len(instances)} instances are ready"
    return told + (f"; tried again: {problem['termination_reason_message']}" if problem else "…")


def _wait(context: Context, fleet: Document) -> int:
    status = Status()
    try:
        while any(instance["status"] in UNSETTLED for instance in fleet["instances"]):
            status.show(_progress(fleet))
            time.sleep(POLL_INTERVAL)
            fleet = context.rest.fleets.get(context.project, name=fleet["name"])
    except KeyboardInterrupt:
        status.clear()
        print(f"Left the fleet {fleet['name']}; see it with `dstack fleet`.")
        return 0
    finally:
        status.clear()
    print_fleets([fleet], context.project)
    failed = fleet["status"] == "failed" or any(
        instance["status"] == "terminated" and instance.get("termination_reason")
        for instance in fleet["instances"]
    )
    return 1 if failed else 0
