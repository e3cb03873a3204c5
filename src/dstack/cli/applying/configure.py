"""From a configuration file and flags to the configuration that is sent."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dstack.cli.errors import CliError
from dstack.cli.overrides import profile_fields, resource_fields
from dstack.core.configurations import (
    AnyRunConfiguration,
    FleetConfiguration,
    ServiceConfiguration,
    TaskConfiguration,
    parse_run_configuration,
)
from dstack.core.configurations.environment import EnvSentinel
from dstack.core.interpolation import InterpolationError, interpolate, references

M = TypeVar("M", bound=BaseModel)


def configure_run(configuration: AnyRunConfiguration, args: argparse.Namespace) -> AnyRunConfiguration:
    """The configuration with the flags applied, variables filled in and texts interpolated."""
    changed = _override(configuration, _run_fields(configuration, args), parse_run_configuration)
    changed.env = resolve_env(changed.env, args.env or [], os.environ)
    _interpolate_args(changed, args.run_args)
    _interpolate_env(changed)
    return changed


def configure_fleet(configuration: FleetConfiguration, args: argparse.Namespace) -> FleetConfiguration:
    """The configuration with the flags applied and variables filled in."""
    fields = {"name": args.name} if args.name is not None else {}
    changed = _override(configuration, fields, FleetConfiguration.model_validate)
    changed.env = resolve_env(changed.env, args.env or [], os.environ)
    return changed


def rename(configuration: M, name: str | None) -> M:
    """The configuration, with another name if one is given."""
    return configuration if name is None else configuration.model_copy(update={"name": name})


def resolve_env(
    env: Mapping[str, str | EnvSentinel], flags: list[str], environ: Mapping[str, str]
) -> dict[str, str | EnvSentinel]:
    """All variables with their values; the flags (`KEY=VALUE`, or `KEY` to copy) win."""
    resolved: dict[str, str | EnvSentinel] = dict(env)
    for flag in flags:
        name, equals, value = flag.partition("=")
        if not name:
            raise CliError(f"-e {flag!r} names no variable: write -e KEY=VALUE or -e KEY")
        resolved[name] = value if equals else EnvSentinel(key=name)
    return {name: _value_of(value, environ) for name, value in resolved.items()}


def _value_of(value: str | EnvSentinel, environ: Mapping[str, str]) -> str:
    if isinstance(value, str):
        return value
    if value.key not in environ:
        raise CliError(
            f"The variable {value.key} is not set in your environment: set it or give -e {value.key}=VALUE"
        )
    return environ[value.key]


def _run_fields(configuration: AnyRunConfiguration, args: argparse.Namespace) -> dict[str, Any]:
    fields = profile_fields(args)
    if args.name is not None:
        fields["name"] = args.name
    resources = resource_fields(args)
    if resources:
        fields["resources"] = configuration.resources.model_dump(mode="json") | resources
    if getattr(args, "ports", None):
        fields["ports"] = _override_ports(configuration, args.ports)
    return fields


def _override_ports(configuration: AnyRunConfiguration, flags: list[str]) -> list[Any]:
    """The ports of the configuration, with the local ports that the flags give to some of them."""
    given: dict[int, Any] = {}
    ports = getattr(configuration, "ports", [])
    for port in ports:
        given[port.container_port] = port.model_dump()
    for flag in flags:
        given[_remote_port(flag)] = flag
    return list(given.values())


def _remote_port(flag: str) -> int:
    remote = flag.rpartition(":")[2]
    if not remote.isdecimal():
        raise CliError(f"{flag!r} is not a port: write -p 8080 or -p 80:8080")
    return int(remote)


def parse_with_flags(data: Mapping[str, Any]) -> AnyRunConfiguration:
    """The configuration of the data, some of which came from flags. Raises CliError."""
    return _parse(data, parse_run_configuration)


def _override(configuration: M, fields: Mapping[str, Any], parse: Callable[[Any], M]) -> M:
    data = configuration.model_dump(mode="json", exclude_unset=True)
    data["type"] = getattr(configuration, "type", None)
    return _parse(data | dict(fields), parse)


def _parse(data: Mapping[str, Any], parse: Callable[[Any], M]) -> M:
    try:
        return parse(data)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise CliError("The flags do not fit: " + "; ".join(dict.fromkeys(problems))) from error


def _interpolate_args(configuration: AnyRunConfiguration, run_args: list[str]) -> None:
    values = {"run": {"args": shlex.join(run_args)}}
    lists = _command_lists(configuration)
    is_used = any(("run", "args") in _references(command) for commands in lists for command in commands)
    if run_args and not is_used:
        raise CliError("There is no ${{ run.args }} in the commands, so nothing can come after --")
    for commands in lists:
        commands[:] = [_interpolate(command, values) for command in commands]


def _command_lists(configuration: AnyRunConfiguration) -> list[list[str]]:
    lists = (
        [configuration.commands] if isinstance(configuration, (TaskConfiguration, ServiceConfiguration)) else []
    )
    groups = getattr(configuration, "groups", None) or []
    return [*lists, *(group.commands for group in groups)]


def _interpolate_env(configuration: AnyRunConfiguration) -> None:
    """Fills `${{ env.X }}` into registry credentials and probes."""
    values = {"env": {name: str(value) for name, value in configuration.env.items()}}
    if configuration.registry_auth is not None:
        auth = configuration.registry_auth
        auth.username, auth.password = _interpolate(auth.username, values), _interpolate(auth.password, values)
    if not isinstance(configuration, ServiceConfiguration):
        return
    for probe in configuration.probes or []:
        probe.url = probe.url and _interpolate(probe.url, values)
        probe.body = probe.body and _interpolate(probe.body, values)
        for header in probe.headers:
            header.value = _interpolate(header.value, values)


def _references(text: str) -> set[tuple[str, str]]:
    try:
        return set(references(text))
    except InterpolationError:
        return set()


def _interpolate(text: str, values: Mapping[str, Mapping[str, str]]) -> str:
    try:
        return interpolate(text, values, keep_unknown_namespaces=True)
    except InterpolationError as error:
        raise CliError(str(error)) from error
