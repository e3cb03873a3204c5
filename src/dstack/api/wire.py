"""Models as the API takes them: without the fields that older servers do not know, where they say nothing."""

from __future__ import annotations

from typing import Any

from dstack.core.fleets import Fleet, FleetSpec
from dstack.core.gateways import Gateway, GatewaySpec
from dstack.core.runs import Run, RunSpec

Document = dict[str, Any]

_UNSET_FIELDS = {"task": ("groups", "nodes"), "service": ("groups",)}
_DEFAULT_GROUP_FIELDS = {"node_group_index": 0, "node_group_name": "0", "node_group_job_index": 0}


def dump_run_spec(spec: RunSpec) -> Document:
    """The spec to plan with and to apply."""
    document = spec.model_dump(mode="json")
    _trim_run_spec(document)
    return document


def dump_current_run(run: Run) -> Document:
    """The run that a plan showed, to send back with it."""
    document = run.model_dump(mode="json")
    _trim_run_spec(document["run_spec"])
    for job in document["jobs"]:
        job.pop("job_connection_info", None)
        for name, default in _DEFAULT_GROUP_FIELDS.items():
            if job["job_spec"].get(name) == default:
                del job["job_spec"][name]
    return document


def dump_fleet_spec(spec: FleetSpec) -> Document:
    """The spec to plan with and to apply."""
    return spec.model_dump(mode="json", exclude={"autocreated"})


def dump_current_fleet(fleet: Fleet) -> Document:
    """The fleet that a plan showed, to send back with it."""
    return fleet.model_dump(mode="json", exclude={"spec": {"autocreated"}})


def dump_gateway_spec(spec: GatewaySpec) -> Document:
    """The spec to plan with and to apply."""
    document = spec.model_dump(mode="json")
    _trim_gateway(document["configuration"])
    return document


def dump_current_gateway(gateway: Gateway) -> Document:
    """The gateway that a plan showed, to send back with it."""
    document = gateway.model_dump(mode="json", exclude={"backend", "region"})
    _trim_gateway(document["configuration"])
    return document


def _trim_gateway(configuration: Document) -> None:
    for name in ("default", "load_balancer"):
        if configuration[name] is None:
            del configuration[name]


def _trim_run_spec(spec: Document) -> None:
    configuration = spec["configuration"]
    for name in _UNSET_FIELDS.get(configuration["type"], ()):
        if configuration.get(name) is None:
            configuration.pop(name, None)
