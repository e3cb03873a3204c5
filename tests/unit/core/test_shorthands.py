"""Every row of the reference's tables of short forms is parsed, or rejected, as it says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from dstack.core.configurations import parse_apply_configuration
from dstack.core.configurations.environment import Env
from dstack.core.configurations.fleet import FleetNodesSpec
from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.configurations.mounts import FilePathMapping, MountPoint, RepoSpec
from dstack.core.configurations.ports import PortMapping
from dstack.core.configurations.profiles import ProfileRetry, Schedule, Tags, UtilizationPolicy
from dstack.core.configurations.references import EntityReference, InstanceSelector
from dstack.core.configurations.scaling import ScalingSpec
from dstack.core.configurations.service import ProbeConfig, RateLimit
from dstack.core.durations import Duration, DurationLimit, IdleDuration
from dstack.core.models import CoreModel
from dstack.core.resources import CPUSpec, DiskSpec, GPUSpec, Memory, Range, ResourcesSpec
from dstack.core.users import UnixUser

TABLES = Path(__file__).parents[2] / "reference" / "shorthands.md"
TYPES: dict[str, Any] = {
    "Duration (plain)": Duration,
    "Duration with off": DurationLimit,
    "Idle duration": IdleDuration,
    "Integer range": Range[int],
    "Memory range": Range[Memory],
    "Single memory value": Memory,
    "CPU": CPUSpec,
    "GPU": GPUSpec,
    "Disk": DiskSpec,
    "Resources": ResourcesSpec,
    "Env": Env,
    "Port mapping": PortMapping,
    "Volume mount": MountPoint,
    "File mapping": FilePathMapping,
    "Repo": RepoSpec,
    "Entity reference": EntityReference,
    "Instance selector": InstanceSelector,
    "Schedule": Schedule,
    "Retry": ProfileRetry | bool | None,
    "Utilization policy": UtilizationPolicy,
    "Fleet nodes": FleetNodesSpec,
    "Scaling": ScalingSpec,
    "Rate limit": RateLimit,
    "Probe": ProbeConfig,
    "Gateway config": GatewayConfiguration,
    "Tags": Tags,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "Task": {"type": "task", "commands": ["a"]},
    "Task groups": {"type": "task"},
    "Service": {"type": "service", "port": 80, "commands": ["a"]},
    "Dev environment": {"type": "dev-environment"},
    "Fleet": {"type": "fleet"},
    "Volume": {"type": "volume"},
    "Preset": {"type": "preset", "model": {"repo": "m"}},
    "Type discriminator": {},
}
BETTER = {
    ("Duration (plain)", '"1h30m"'): 5400,
    ("Duration with off", '"1h30m"'): 5400,
    ("Memory range", '"16GiB"'): {"min": 16.0, "max": 16.0},
}
"""Accepted here (B23), errors there."""
Row = tuple[str, str, str]


def rows() -> list[Row]:
    found: list[Row] = []
    section = ""
    for line in TABLES.read_text().splitlines():
        if line.startswith("## "):
            section = re.split(r" \((?!plain)|, via", line[3:])[0]
        match = re.fullmatch(r"\| `(.*?)` \| (.*) \|", line)
        if match and (section in TYPES or section in CONFIGURATIONS or section == "Unix user"):
            found.append((section, match[1], match[2]))
    return found


def dump(section: str, value: Any) -> Any:
    if section == "Unix user":
        return UnixUser.parse(value).model_dump(mode="json")
    if section in TYPES:
        config = CoreModel.model_config if section == "Env" else None  # the config that it has as a field
        adapter = TypeAdapter(TYPES[section], config=config)
        return adapter.dump_python(adapter.validate_python(value), mode="json")
    return parse_apply_configuration({**CONFIGURATIONS[section], **value}).model_dump(mode="json")


def normalised(location: tuple[Any, ...] | str) -> str:
    """The path of a field without the names of a union's branches."""
    parts = location.split(".") if isinstance(location, str) else [str(part) for part in location]
    return ".".join(part for part in parts if re.fullmatch(r"[a-z_]+|\d+", part) and part not in TAGS)


TAGS = {
    "str",
    "int",
    "bool",
    "task",
    "service",
    "fleet",
    "volume",
    "preset",
    "aws",
    "gcp",
    "dev-environment",
    "openai",
    "tgi",
}


def is_related(ours: str, theirs: str) -> bool:
    return ours == theirs or ours.startswith(theirs) or theirs.startswith(ours)


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]}-{row[1][:50]}")
def test_row(row: Row) -> None:
    section, text, expected = row
    if "a 257-character value" in text:
        text = json.dumps({"tags": {"a": "b" * 257}})
    value = json.loads(text)
    if (section, text) in BETTER:
        assert dump(section, value) == BETTER[section, text]
        return
    if expected.startswith(("error", "crash")):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - pydantic's errors and ours are both ValueErrors
            dump(section, value)
        check_location(caught.value, expected)
        return
    check_parsed(dump(section, value), expected)


def check_parsed(parsed: Any, expected: str) -> None:
    if expected.startswith("`"):
        assert parsed == json.loads(re.match(r"`(.*?)`(?: \(|$)", expected)[1])  # type: ignore[index]
    elif expected.startswith("(other"):
        for key, value in json.loads(re.search(r"`(.*?)`(?: \(|$)", expected)[1]).items():  # type: ignore[index]
            assert key == "type" or parsed[key] == value
    else:
        assert expected.startswith("accepted")


def check_location(error: ValueError, expected: str) -> None:
    """One of our errors stands at, above or below a field that the row names."""
    if not isinstance(error, ValidationError):
        return
    theirs = [normalised(place) for place in re.findall(r" at `(.*?)` \[", expected)] or [""]
    ours = [normalised(item["loc"]) for item in error.errors()]
    assert any(is_related(mine, other) for mine in ours for other in theirs), (ours, theirs)
