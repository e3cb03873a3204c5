"""The values of the rows that a new run, replica or submission consists of. Pure: ids and times come in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from dstack.core.canonical import dump_json
from dstack.core.configurations.service import OpenAIChatModel, ServiceConfiguration
from dstack.core.jobs import JobSpec, JobStatus
from dstack.core.runs import RunSpec, ServiceModelSpec, ServiceSpec


def job_values(
    specs: Iterable[tuple[UUID, JobSpec]],
    *,
    run_id: UUID,
    project_id: UUID,
    now: datetime,
    priority: int = 0,
    submission_num: int = 0,
    deployment_num: int = 0,
) -> list[dict[str, Any]]:
    """Columns of `jobs` for new submissions, one for each (id, spec)."""
    return [
        {
            "id": job_id,
            "run_id": run_id,
            "project_id": project_id,
            "replica_num": spec.replica_num,
            "job_num": spec.job_num,
            "job_name": spec.job_name,
            "submission_num": submission_num,
            "deployment_num": deployment_num,
            "priority": priority,
            "submitted_at": now,
            "last_processed_at": now,
            "status": JobStatus.SUBMITTED.value,
            "job_spec": dump_json(spec),
        }
        for job_id, spec in specs
    ]


@dataclass(frozen=True)
class OnGateway:
    """The gateway that publishes a service, as `<run>.<domain>`."""

    id: UUID
    domain: str
    https: bool

    def url(self, name: str) -> str:
        """Of a service, or of `gateway`, where the models are."""
        return f"{'https' if self.https else 'http'}://{name.lower()}.{self.domain}"


def service_spec(
    run_spec: RunSpec, *, project_name: str, run_name: str, gateway: OnGateway | None = None
) -> ServiceSpec | None:
    """Where a service is called (reference: proxy, section 2); None for other runs."""
    configuration = run_spec.configuration
    if not isinstance(configuration, ServiceConfiguration):
        return None
    url = gateway.url(run_name) if gateway is not None else f"/proxy/services/{project_name}/{run_name}/"
    model = configuration.model
    if model is None:
        return ServiceSpec(url=url)
    base_url = gateway.url("gateway") if gateway is not None else f"/proxy/models/{project_name}/"
    if isinstance(model, OpenAIChatModel):
        base_url = f"{url.rstrip('/')}/{model.prefix.strip('/')}".rstrip("/")
    shown = ServiceModelSpec(name=model.name, base_url=base_url, type=model.type)
    return ServiceSpec(url=url, model=shown, options={"openai": {"model": model.model_dump(mode="json")}})
