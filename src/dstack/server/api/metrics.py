"""`/api/project/{project_name}/metrics`, and `/metrics` for Prometheus."""

from __future__ import annotations

import hmac
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dstack.core.errors import Forbidden
from dstack.core.metrics import JobMetrics
from dstack.server.api import answers
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Ctx, MemberOf, Permission, bearer_token, context_of
from dstack.server.operations import metrics, prometheus

router = APIRouter(tags=["metrics"])
MAX_POINTS = 10_000
MAX_NUMBER = 2**31 - 1


async def _scraper(request: Request) -> None:
    """Whoever has the token of the settings; anybody when there is none. 404 unless the page is switched on."""
    settings = context_of(request).settings
    if not settings.prometheus_enabled:
        raise HTTPException(404)
    wanted = settings.prometheus_token
    if wanted is not None and not hmac.compare_digest(bearer_token(request).encode(), wanted.encode()):
        raise Forbidden("Invalid token: this page wants the one of DSTACK_PROMETHEUS_AUTH_TOKEN")


Scraper = Annotated[None, Depends(Permission("metrics token", _scraper))]


@router.get("/api/project/{project_name}/metrics/job/{run_name}", openapi_extra=answering(JobMetrics))
async def get_job_metrics(
    at: MemberOf,
    ctx: Ctx,
    run_name: str,
    run_id: UUID | None = None,
    replica_num: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0,
    job_num: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_POINTS)] = 1,
    after: datetime | None = None,
    before: datetime | None = None,
) -> Response:
    """What a job used, newest first; both bounds are exclusive."""
    wanted = metrics.MetricsQuery(replica_num, job_num, limit, after, before, run_id)
    return answers.model(await metrics.get_job_metrics(ctx, at, run_name, wanted))


@router.get("/metrics", include_in_schema=False)
async def get_prometheus_metrics(_: Scraper, ctx: Ctx) -> Response:
    """The text format of Prometheus."""
    return Response(await prometheus.render(ctx), media_type=prometheus.CONTENT_TYPE)
