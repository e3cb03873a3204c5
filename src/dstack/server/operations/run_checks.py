"""What can be told to be wrong about a run before it is submitted, in words for the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dstack.core.configurations.dev_environment import DevEnvironmentConfiguration
from dstack.core.configurations.files import AnyRunConfiguration
from dstack.core.cron import next_trigger
from dstack.core.durations import format_duration
from dstack.core.errors import InvalidRequest
from dstack.core.interpolation import InterpolationError, references
from dstack.core.job_specs import merge_profile
from dstack.core.runs import RunSpec
from dstack.server import clock
from dstack.server.settings import Settings

SECRETS = "secrets"
_ELSEWHERE = ("run", "env", "dstack")
_FILLED_BY_CLIENT = {"run": "the arguments after `--` of `dstack apply`", "env": "`dstack apply`"}


def check_run(spec: RunSpec, settings: Settings) -> None:
    """Raises InvalidRequest for what could never work on this server."""
    configuration = merge_profile(spec)
    _check_access(configuration)
    _check_schedule(configuration)
    _check_window(configuration, settings)
    try:
        _check_commands(configuration)
        _check_texts(configuration)
    except InterpolationError as error:
        raise InvalidRequest(str(error)) from None


def _check_access(configuration: AnyRunConfiguration) -> None:
    if configuration.dstack:
        raise InvalidRequest(
            "`dstack: true` cannot be had: this server gives jobs no access to itself. Leave it out, and hand the "
            "job a token of your own by a secret: `env: [DSTACK_TOKEN=${{ secrets.token }}]`"
        )


def _check_schedule(configuration: AnyRunConfiguration) -> None:
    schedule = configuration.schedule
    if schedule is not None and next_trigger(schedule.cron, clock.now()) is None:
        raise InvalidRequest(f"The schedule {', '.join(schedule.cron)} never comes: there is no such day")


def _check_window(configuration: AnyRunConfiguration, settings: Settings) -> None:
    policy, kept = configuration.utilization_policy, settings.metrics_running_ttl
    if policy is not None and policy.time_window > kept:
        raise InvalidRequest(
            f"'utilization_policy.time_window' is {format_duration(policy.time_window)}, but this server keeps "
            f"metrics for {format_duration(kept)} (DSTACK_SERVER_METRICS_RUNNING_TTL_SECONDS): give at most that"
        )


def _check_commands(configuration: AnyRunConfiguration) -> None:
    """Only nodes of groups are filled in on the way to the job; what we do not know is the command's own text."""
    for command in _commands(configuration):
        for namespace, name in _references(command):
            if namespace == SECRETS:
                raise InvalidRequest(
                    f"${{{{ secrets.{name} }}}} stands in a command, where secrets are not filled in: give it to "
                    f"a variable, as in `env: [{name.upper()}=${{{{ secrets.{name} }}}}]`, and use that"
                )
            if namespace in _ELSEWHERE:
                _refuse(namespace, name, "a command")


def _check_texts(configuration: AnyRunConfiguration) -> None:
    """In variables and credentials only secrets are filled in."""
    auth = configuration.registry_auth
    texts = [*map(str, configuration.env.values()), *((auth.username, auth.password) if auth else ())]
    for text in texts:
        for namespace, name in references(text) if "${{" in text else ():
            if namespace != SECRETS:
                _refuse(namespace, name, "'env' or 'registry_auth'")


def _refuse(namespace: str, name: str, where: str) -> None:
    by = _FILLED_BY_CLIENT.get(namespace)
    why = f"is filled in by {by}, which was not asked to" if by else "is not known there"
    raise InvalidRequest(f"${{{{ {namespace}.{name} }}}} in {where} {why}; write $${{{{ for the text itself")


def _commands(configuration: AnyRunConfiguration) -> Iterator[str]:
    yield from configuration.setup
    if isinstance(configuration, DevEnvironmentConfiguration):
        yield from configuration.init
        return
    yield from configuration.commands
    for group in configuration.groups or ():
        yield from group.commands


def _references(command: str) -> Iterable[tuple[str, str]]:
    """Of a command; other text in `${{ }}` is the shell's own business."""
    try:
        return list(references(command)) if "${{" in command else ()
    except InterpolationError:
        return ()
