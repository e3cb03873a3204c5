"""Configuration files: found, read, and checked with messages that name file, line and field."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dstack.cli.errors import CliError
from dstack.core.configurations import (
    AnyApplyConfiguration,
    DevEnvironmentConfiguration,
    FleetConfiguration,
    GatewayConfiguration,
    PresetConfiguration,
    ServiceConfiguration,
    TaskConfiguration,
    parse_apply_configuration,
)
from dstack.core.configurations.problems import ConfigurationError, describe_problems, field_names, load_yaml
from dstack.core.configurations.profiles import Profile, ProfilesConfig

DEFAULT_NAMES = (".dstack.yml", ".dstack.yaml")
STDIN = "-"

_MODELS = (
    TaskConfiguration,
    ServiceConfiguration,
    DevEnvironmentConfiguration,
    FleetConfiguration,
    GatewayConfiguration,
    PresetConfiguration,
)


@dataclass(frozen=True)
class ConfigurationFile:
    """A configuration and where it is from. Paths in it are relative to `folder`."""

    configuration: AnyApplyConfiguration
    path: str | None
    """As shown by the server; None for stdin."""
    folder: Path


def load_configuration(path: str | None) -> ConfigurationFile:
    """The configuration of the file, of stdin for `-`, or of the default file here."""
    if path == STDIN:
        return ConfigurationFile(_parse(sys.stdin.read(), "<stdin>"), None, Path.cwd())
    file = Path(path) if path is not None else _find_default()
    text = _read(file)
    return ConfigurationFile(_parse(text, str(file)), _shown_path(file), file.resolve().parent)


def load_profile(name: str | None) -> Profile:
    """The profile of that name, or the default one; an empty one when there is none and none is asked for."""
    for folder in (Path.cwd() / ".dstack", Path.home() / ".dstack"):
        for file in (folder / "profiles.yml", folder / "profiles.yaml"):
            profile = _parse_profiles(file).find(name) if file.exists() else None
            if profile is not None:
                return profile
    if name is not None:
        raise CliError(f"There is no profile {name!r} in .dstack/profiles.yml, here or in your home folder")
    return Profile(name="default")


def _find_default() -> Path:
    for name in DEFAULT_NAMES:
        if Path(name).is_file():
            return Path(name)
    raise CliError(f"There is no {DEFAULT_NAMES[0]} in this folder: name a configuration with -f")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise CliError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CliError(f"{file} is not a text in UTF-8: {error.reason} at byte {error.start}") from error


def _shown_path(file: Path) -> str:
    resolved = file.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(resolved)


def _parse(text: str, shown: str) -> AnyApplyConfiguration:
    try:
        data = load_yaml(text, shown)
        if not isinstance(data, dict):
            raise CliError(f"{shown}: a configuration is a map of fields; 'type' says what it is")
        return parse_apply_configuration(data)
    except ConfigurationError as error:
        raise CliError(str(error)) from error
    except ValidationError as error:
        known = field_names(*_models_of(data))
        raise CliError(str(describe_problems(error, text=text, file=shown, known_fields=known))) from error


def _models_of(data: dict[str, Any]) -> list[type[Any]]:
    matching = [model for model in _MODELS if model.model_fields["type"].default == data.get("type")]
    return list(matching or _MODELS)


def _parse_profiles(file: Path) -> ProfilesConfig:
    text = _read(file)
    try:
        return ProfilesConfig.model_validate(load_yaml(text, str(file)))
    except ConfigurationError as error:
        raise CliError(str(error)) from error
    except ValidationError as error:
        problems = describe_problems(error, text=text, file=str(file), known_fields=field_names(Profile))
        raise CliError(str(problems)) from error
