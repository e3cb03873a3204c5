"""All kinds that the engine drives."""

from __future__ import annotations

from typing import Any

from dstack.core.images import Images
from dstack.server.orchestrator.decision import ResourceKind
from dstack.server.orchestrator.fleets import snapshot as fleets
from dstack.server.orchestrator.gateway_replicas import snapshot as gateway_replicas
from dstack.server.orchestrator.gateways import snapshot as gateways
from dstack.server.orchestrator.instances import snapshot as instances
from dstack.server.orchestrator.jobs import snapshot as jobs
from dstack.server.orchestrator.placement import snapshot as placement
from dstack.server.orchestrator.runs import snapshot as runs
from dstack.server.orchestrator.volumes import snapshot as volumes


def kinds(images: Images) -> tuple[ResourceKind[Any], ...]:
    """`images`: of the jobs that are made when a run gets new replicas."""
    return (
        runs.RunKind(images),
        jobs.KIND,
        placement.KIND,
        instances.KIND,
        fleets.KIND,
        volumes.KIND,
        gateways.KIND,
        gateway_replicas.KIND,
    )
