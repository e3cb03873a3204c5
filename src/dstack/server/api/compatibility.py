"""What older clients get instead of the newest shapes (reference: wire, section 9). Nothing is parsed unless the
client's version and the text ask for it."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request

from dstack.server.api.versions import Version


def patched(request: Request, text: bytes) -> bytes:
    """The JSON of runs or plans as this client reads it."""
    version: Version | None = getattr(request.state, "client_version", None)
    if version is None:
        return text
    wants_nodes = b'"nodes":null' in text
    is_old = version < (0, 21, 3)
    if not wants_nodes and not is_old:
        return text
    document = orjson.loads(text)
    for configuration in _run_configurations(document):
        _patch_configuration(configuration, version)
    if version < (0, 20, 8):
        _patch_probes(document)
    return orjson.dumps(document)


def _patch_configuration(configuration: dict[str, Any], version: Version) -> None:
    if configuration.get("type") == "task" and configuration.get("nodes", 1) is None:
        configuration["nodes"] = 1
    if (
        version < (0, 20, 12)
        and configuration.get("type") == "service"
        and configuration.get("https", True) is None
    ):
        configuration["https"] = True
    if version < (0, 20, 14) and configuration.get("fleets"):
        configuration["fleets"] = [_plain_name(fleet) for fleet in configuration["fleets"]]
    if version < (0, 20, 20) and isinstance(configuration.get("gateway"), dict):
        configuration["gateway"] = _plain_name(configuration["gateway"])
    if version < (0, 21, 0) and configuration.get("commands") == []:
        configuration["commands"] = [":"]
    if version < (0, 21, 3) and configuration.get("type") == "service" and configuration.get("groups"):
        groups = configuration.pop("groups")
        configuration["replicas"] = [{**group, "count": group.pop("replicas", None)} for group in groups]


def _plain_name(reference: Any) -> Any:
    if not isinstance(reference, dict):
        return reference
    project, name = reference.get("project"), reference.get("name")
    return f"{project}/{name}" if project else name


def _run_configurations(value: Any) -> list[dict[str, Any]]:
    """Every `configuration` inside a run spec, and its profile, at any depth."""
    if isinstance(value, list):
        return [found for item in value for found in _run_configurations(item)]
    if not isinstance(value, dict):
        return []
    found = [value["configuration"]] if isinstance(value.get("configuration"), dict) else []
    if found and isinstance(value.get("profile"), dict):
        found.append(value["profile"])
    return found + [
        one for key, item in value.items() if key != "configuration" for one in _run_configurations(item)
    ]


def _patch_probes(value: Any) -> None:
    """Probes that are null in a job spec become an empty list."""
    if isinstance(value, list):
        for item in value:
            _patch_probes(item)
    elif isinstance(value, dict):
        if "probes" in value and value["probes"] is None:
            value["probes"] = []
        for item in value.values():
            _patch_probes(item)
