"""`dstack apply` of gateways."""

from __future__ import annotations

import argparse
import time
from typing import Any

from dstack.api.wire import dump_current_gateway, dump_gateway_spec
from dstack.cli.applying.configure import rename
from dstack.cli.applying.ssh_keys import read_keys
from dstack.cli.context import Context
from dstack.cli.files import ConfigurationFile
from dstack.cli.output.gateways import gateway_headers, gateway_rows
from dstack.cli.output.live import Status
from dstack.cli.output.plans import print_changes
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_properties, print_table
from dstack.cli.output.values import format_backend, now_utc
from dstack.cli.waiting import delete_gateway
from dstack.core.configurations import GatewayConfiguration
from dstack.core.diff import can_update_gateway, changed_gateway_fields
from dstack.core.gateways import GatewayPlan, GatewaySpec

POLL_INTERVAL = 2.0
"""Seconds."""
SETTLED = ("running", "failed")

Document = dict[str, Any]


def apply_gateway(context: Context, file: ConfigurationFile, args: argparse.Namespace) -> int:
    """Plans, asks, applies and waits until the gateway runs; the exit status."""
    configuration = rename(file.configuration, args.name)
    assert isinstance(configuration, GatewayConfiguration)
    if configuration.ssh_config is not None:
        read_keys(configuration.ssh_config, args.ssh_identity)
    spec = GatewaySpec(configuration=configuration, configuration_path=file.path)
    answer = context.rest.gateways.get_plan(context.project, dump_gateway_spec(spec))
    plan = GatewayPlan.model_validate(answer, extra="ignore")
    _print_plan(answer)
    if not _is_agreed(plan, answer, args):
        return 0
    current = plan.current_resource
    if current is not None and not _can_update(plan):
        delete_gateway(context, current.name)
        current = None
    gateway = context.rest.gateways.apply(
        context.project,
        dump_gateway_spec(spec),
        None if current is None else dump_current_gateway(current),
        force=args.force,
    )
    if args.detach:
        print(f"Gateway {gateway['name']} is submitted.")
        return 0
    return _wait(context, gateway)


def _print_plan(answer: Document) -> None:
    configuration = answer["effective_spec"]["configuration"]
    shown = [
        ("Project", answer["project_name"]),
        ("User", answer["user"]),
        ("Type", "gateway"),
        ("Backend", format_backend(configuration["backend"], configuration["region"])),
        ("Instance type", configuration.get("instance_type")),
        ("Hosts", _hosts(configuration.get("ssh_config"))),
        ("Domain", configuration.get("domain")),
        ("Replicas", str(configuration["replicas"]) if configuration.get("replicas") else None),
    ]
    print_properties([(name, value) for name, value in shown if value])
    print()


def _hosts(ssh: Document | None) -> str | None:
    return (
        None
        if ssh is None
        else ", ".join(host if isinstance(host, str) else host["hostname"] for host in ssh["hosts"])
    )


def _can_update(plan: GatewayPlan) -> bool:
    assert plan.current_resource is not None
    current = GatewaySpec(configuration=plan.current_resource.configuration)
    return can_update_gateway(current, plan.effective_spec)


def _is_agreed(plan: GatewayPlan, answer: Document, args: argparse.Namespace) -> bool:
    current = plan.current_resource
    if current is None:
        name = plan.spec.configuration.name
        return args.yes or confirm(f"Create the gateway {name}?" if name else "Create the gateway?")
    changes = changed_gateway_fields(current.configuration, plan.effective_spec.configuration)
    if not changes and args.yes and not args.force:
        print(f"The gateway {current.name} exists and nothing has changed. Pass --force to apply it again.")
        return False
    if not changes:
        return args.yes or confirm(f"The gateway {current.name} exists and nothing has changed. Apply it again?")
    old, new = answer["current_resource"]["configuration"], answer["effective_spec"]["configuration"]
    print_changes(f"The gateway {current.name} exists. What changes:", old, new, changes)
    if _can_update(plan):
        return args.yes or confirm(f"Update the gateway {current.name} in place?")
    return args.yes or confirm(f"The changes need a new gateway. Delete {current.name} and create it again?")


def _wait(context: Context, gateway: Document) -> int:
    status = Status()
    try:
        while gateway["status"] not in SETTLED:
            problem = gateway.get("status_message")
            status.show(f"{gateway['name']}: {gateway['status']}" + (f"; {problem}" if problem else "…"))
            time.sleep(POLL_INTERVAL)
            gateway = context.rest.gateways.get(context.project, gateway["name"])
    except KeyboardInterrupt:
        status.clear()
        print(f"Left the gateway {gateway['name']}; see it with `dstack gateway`.")
        return 0
    finally:
        status.clear()
    headers = gateway_headers(verbose=False)
    print_table(headers, gateway_rows(gateway, context.project, headers, now_utc()))
    if gateway["status"] == "failed":
        reason = gateway.get("status_message") or "the server does not say why"
        print(f"The gateway {gateway['name']} failed: {reason}")
        return 1
    return 0
