"""`dstack apply` of presets, and `dstack preset create`."""

from __future__ import annotations

import argparse
import os
import subprocess
from typing import Any

from dstack.api.wire import dump_run_spec
from dstack.cli.applying.configure import parse_with_flags, resolve_env
from dstack.cli.context import Context
from dstack.cli.errors import CliError
from dstack.cli.files import ConfigurationFile, load_profile
from dstack.cli.output.plans import print_offers
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_properties
from dstack.cli.overrides import chosen_profile, profile_fields
from dstack.cli.presets.agents import CodingAgent, find_agent
from dstack.cli.presets.making import find_previous, finish, follow, read_wishes, start
from dstack.cli.presets.sessions import DONE, Session, new_session
from dstack.core.configurations import PresetConfiguration
from dstack.core.configurations.profiles import Profile, ProfileParams
from dstack.core.names import check_resource_name
from dstack.core.runs import RunSpec

NEEDED = ("min_context_length", "max_ttft", "concurrency", "trials")
MAX_OFFERS = 3


def apply_preset(context: Context, file: ConfigurationFile, args: argparse.Namespace) -> int:
    """Asks, has the agent make the preset, and follows it; the exit status."""
    assert isinstance(file.configuration, PresetConfiguration)
    configuration = _configure(file.configuration, args)
    agent = find_agent(configuration.agent, os.environ)
    wishes = read_wishes(configuration, file.folder)
    previous = find_previous(configuration.previous or [])
    resolve_env(configuration.env, [], os.environ)  # says what is missing before anybody is asked
    _print_plan(context, configuration, agent)
    print(f"\nThe agent runs commands on this machine, as you, without asking: {agent.executable}")
    if not args.yes and not confirm("Have the preset made?"):
        return 0
    session = new_session(
        configuration, project=context.project, provider=agent.provider, keep_service=args.keep_service
    )
    process = start(context, session, agent, wishes, previous)
    if args.detach:
        print(f"The preset {session.id} is being made; `dstack preset logs -f {session.id}` follows it.")
        return 0
    return follow_to_end(context, session, process)


def follow_to_end(context: Context, session: Session, process: subprocess.Popen[bytes] | None) -> int:
    """Until the agent has ended and its report is checked; the exit status. Ctrl-C leaves it at work."""
    try:
        follow(session, process, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print(
            f"\nThe agent goes on: `dstack preset logs -f {session.id}` follows it, `dstack preset stop` ends it."
        )
        return 0
    finish(context, session)
    if session.status != DONE:
        print(f"The preset {session.id} failed: {session.error}")
        return 1
    print(f"The preset {session.id} is done: `dstack preset export {session.id} -f FILE` writes its service.")
    return 0


def _configure(configuration: PresetConfiguration, args: argparse.Namespace) -> PresetConfiguration:
    """With the flags and the profile applied. Raises CliError for what making a preset needs."""
    flags = profile_fields(args)
    given = {"name": args.name, "trials": args.trials, "previous": args.previous}
    flags |= {name: value for name, value in given.items() if value is not None}
    profile = _profile(args)
    data = configuration.model_dump(mode="json") | flags
    for name in ProfileParams.model_fields:
        if data[name] is None:
            data[name] = getattr(profile, name)
    changed = PresetConfiguration.model_validate(data)
    for name in NEEDED:
        if getattr(changed, name) is None:
            hint = "; set it there or give --trials" if name == "trials" else ""
            raise CliError(f"Making a preset needs '{name}' in the configuration{hint}")
    _check_name(changed.name)
    return changed


def _check_name(name: str | None) -> None:
    try:
        check_resource_name(name or "preset", "preset")
    except ValueError as error:
        raise CliError(str(error)) from error


def _profile(args: argparse.Namespace) -> Profile:
    name = chosen_profile(args)
    return Profile(name="default") if name is False else load_profile(name if isinstance(name, str) else None)


def _print_plan(context: Context, configuration: PresetConfiguration, agent: CodingAgent) -> None:
    plan = context.rest.runs.get_plan(
        context.project,
        _spec_for_offers(configuration),
        max_offers=MAX_OFFERS,
        full_offers=False,
        unallocated=False,
        for_offers_only=True,
    )
    print_properties(
        [
            ("Project", context.project),
            ("User", plan["user"]),
            ("Type", "preset"),
            ("Model", configuration.model_name),
            ("Trials", str(configuration.trials)),
            ("Agent", agent.provider if agent.model is None else f"{agent.provider} ({agent.model})"),
        ]
    )
    print()
    job_plan = plan["job_plans"][0]
    print_offers(job_plan["offers"], total=job_plan["total_offers"])


def _spec_for_offers(configuration: PresetConfiguration) -> dict[str, Any]:
    """A task that is never run: what its trials may run on."""
    names = set(ProfileParams.model_fields)
    where = configuration.model_dump(mode="json", include=names, exclude_none=True)
    resources = {"cpu": "1..", "memory": "0..", "gpu": "0..", "disk": None}
    task = {"type": "task", "commands": [":"], "image": "scratch", "user": "root", "resources": resources}
    return dump_run_spec(RunSpec(configuration=parse_with_flags(task | where), profile=Profile(name="default")))
