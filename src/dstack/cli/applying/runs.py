"""`dstack apply` of tasks, services and dev environments."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstack.api.archives import upload_files
from dstack.api.attach import reserve_ports
from dstack.api.ssh.ports import ReservedPorts
from dstack.api.ssh.tunnel import find_ssh
from dstack.api.wire import dump_current_run, dump_run_spec
from dstack.cli.applying.configure import configure_run
from dstack.cli.applying.repos import attach_repo
from dstack.cli.context import Context
from dstack.cli.errors import CliError
from dstack.cli.files import ConfigurationFile, load_profile
from dstack.cli.output.live import Status
from dstack.cli.output.plans import print_changes, print_run_plan
from dstack.cli.output.prompts import confirm
from dstack.cli.overrides import chosen_profile
from dstack.core.configurations import AnyRunConfiguration
from dstack.core.configurations.profiles import Profile
from dstack.core.diff import changed_run_fields
from dstack.core.plans import ApplyAction
from dstack.core.repos import VIRTUAL_REPO_ID, VirtualRunRepoData
from dstack.core.runs import RunPlan, RunSpec

STOP_POLL_INTERVAL = 1.0
"""Seconds."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Submitted:
    """A run that was sent, and the local ports that are reserved for it; None when nobody stays with it."""

    run: Document
    ports: ReservedPorts | None


def submit_run(context: Context, file: ConfigurationFile, args: argparse.Namespace) -> Submitted | None:
    """Plans, asks and applies; returns None when nothing was to be done or the answer was no.

    Local ports are taken before anything is sent.
    """
    spec = make_run_spec(context, file, args)
    document = dump_run_spec(spec)
    answer = context.rest.runs.get_plan(
        context.project,
        document,
        max_offers=args.max_offers,
        full_offers=args.full_offers,
        unallocated=args.unallocated,
    )
    plan = RunPlan.model_validate(answer, extra="ignore")
    print_run_plan(answer, max_offers=args.max_offers, verbose=args.verbose)
    current = plan.current_resource
    if not _is_agreed(plan, answer, args):
        return None
    ports = None if args.detach else _prepare_to_attach(context, answer, args)
    with contextlib.ExitStack() as freed_on_error:
        if ports is not None:
            freed_on_error.callback(ports.release)
        if current is not None and not current.status.is_finished() and _must_replace(plan):
            _stop_and_wait(context, spec.run_name or current.run_spec.run_name or "")
            current = None
        sent = None if current is None else dump_current_run(current)
        run = context.rest.runs.apply(context.project, document, sent, force=args.force)
        freed_on_error.pop_all()
    return Submitted(run, ports)


def _prepare_to_attach(context: Context, plan: Document, args: argparse.Namespace) -> ReservedPorts:
    """Raises AttachError for what would stand in the way of attaching, before anything is sent."""
    is_dev_environment = plan["run_spec"]["configuration"]["type"] == "dev-environment"
    if is_dev_environment or any(job["job_spec"].get("app_specs") for job in plan["job_plans"][:1]):
        find_ssh()
    return reserve_ports(plan, getattr(args, "host", None), context.rest.base_url)


def make_run_spec(context: Context, file: ConfigurationFile, args: argparse.Namespace) -> RunSpec:
    """The spec to send; what it needs besides (files, code, credentials) is uploaded."""
    configuration: AnyRunConfiguration = configure_run(file.configuration, args)  # type: ignore[arg-type]
    profile = _load_profile(args)
    spec = RunSpec(
        run_name=configuration.name,
        repo_id=VIRTUAL_REPO_ID,
        repo_data=VirtualRunRepoData(),
        configuration_path=file.path,
        configuration=configuration,
        profile=profile,
        ssh_key_pub=_read_public_key(args.ssh_identity),
    )
    attach_repo(context, spec, file, args)
    spec.file_archives = upload_files(context.rest, configuration.files, file.folder)
    return spec


def _load_profile(args: argparse.Namespace) -> Profile:
    name = chosen_profile(args)
    return Profile(name="default") if name is False else load_profile(name if isinstance(name, str) else None)


def _read_public_key(identity: str | None) -> str | None:
    if identity is None:
        return None
    path = Path(f"{identity}.pub").expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CliError(f"The public key {path} cannot be read: {error.strerror}") from error


def _must_replace(plan: RunPlan) -> bool:
    return plan.action is ApplyAction.CREATE or not _changes(plan)


def _changes(plan: RunPlan) -> list[str]:
    if plan.current_resource is None:
        return []
    return changed_run_fields(plan.current_resource.run_spec, plan.effective_run_spec or plan.run_spec)


def _is_agreed(plan: RunPlan, answer: Document, args: argparse.Namespace) -> bool:
    """Shows what would happen to a run that exists, and asks unless told not to."""
    current = plan.current_resource
    name = plan.run_spec.run_name
    if current is None or current.status.is_finished():
        return args.yes or confirm(f"Submit the run {name}?" if name else "Submit the run?", default=False)
    changes = _changes(plan)
    if not changes and plan.action is ApplyAction.UPDATE:
        return _is_repeat_agreed(name, args)
    spec = answer["effective_run_spec"] or answer["run_spec"]
    print_changes(
        f"The run {name} is active. What changes:", answer["current_resource"]["run_spec"], spec, changes
    )
    if plan.action is ApplyAction.UPDATE:
        return args.yes or confirm(f"Update the run {name} in place?")
    return args.yes or confirm(f"The changes need a new start. Stop the run {name} and submit it again?")


def _is_repeat_agreed(name: str | None, args: argparse.Namespace) -> bool:
    if args.yes and not args.force:
        print(f"The run {name} is active and nothing has changed. Pass --force to stop it and submit it again.")
        return False
    return args.yes or confirm(f"The run {name} is active and nothing has changed. Stop it and submit it again?")


def _stop_and_wait(context: Context, name: str) -> None:
    context.rest.runs.stop(context.project, [name])
    status = Status(sys.stderr)
    try:
        while context.rest.runs.get(context.project, name=name)["status"] not in ("terminated", "failed", "done"):
            status.show(f"Stopping {name}…")
            time.sleep(STOP_POLL_INTERVAL)
    finally:
        status.clear()
