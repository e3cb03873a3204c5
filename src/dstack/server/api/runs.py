"""`/api/runs` and `/api/project/{project_name}/runs`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from dstack.core.models import CoreModel
from dstack.core.runs import Run, RunPlan
from dstack.core.schemas.runs import (
    ApplyRunPlanRequest,
    DeleteRunsRequest,
    GetRunPlanRequest,
    GetRunRequest,
    ListRunsRequest,
    StopRunsRequest,
)
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.compatibility import patched
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Authenticated, Ctx, MemberOf
from dstack.server.api.streams import lines
from dstack.server.operations import run_answers, run_plans, runs, watching

router = APIRouter(tags=["runs"])
PROJECT = "/api/project/{project_name}/runs"


class WatchRunsRequest(CoreModel):
    """One run by name, or all of the project."""

    run_name: str | None = None


@router.post("/api/runs/list", openapi_extra=answering(list[Run]))
async def list_runs(
    caller: Authenticated, ctx: Ctx, request: Request, body: Annotated[ListRunsRequest, JsonBody(ListRunsRequest)]
) -> Response:
    found = await runs.list_runs(ctx, caller, body)
    return answers.Json(patched(request, run_answers.dump(found)))


@router.post(f"{PROJECT}/get", openapi_extra=answering(Run))
async def get_run(
    at: MemberOf, ctx: Ctx, request: Request, body: Annotated[GetRunRequest, JsonBody(GetRunRequest)]
) -> Response:
    return answers.Json(patched(request, run_answers.dump(await runs.get_run(ctx, at, body))))


@router.post(f"{PROJECT}/get_plan", openapi_extra=answering(RunPlan))
async def get_plan(
    at: MemberOf, ctx: Ctx, request: Request, body: Annotated[GetRunPlanRequest, JsonBody(GetRunPlanRequest)]
) -> Response:
    plan = await run_plans.get_plan(ctx, at, body)
    return answers.Json(patched(request, plan.model_dump_json().encode()))


@router.post(f"{PROJECT}/apply", openapi_extra=answering(Run))
async def apply_plan(
    at: MemberOf, ctx: Ctx, request: Request, body: Annotated[ApplyRunPlanRequest, JsonBody(ApplyRunPlanRequest)]
) -> Response:
    return answers.Json(patched(request, run_answers.dump(await run_plans.apply(ctx, at, body))))


@router.post(f"{PROJECT}/stop", openapi_extra=answering())
async def stop_runs(
    at: MemberOf, ctx: Ctx, body: Annotated[StopRunsRequest, JsonBody(StopRunsRequest)]
) -> Response:
    await runs.stop_runs(ctx, at, body.runs_names, abort=body.abort)
    return answers.nothing()


@router.post(f"{PROJECT}/delete", openapi_extra=answering())
async def delete_runs(
    at: MemberOf, ctx: Ctx, body: Annotated[DeleteRunsRequest, JsonBody(DeleteRunsRequest)]
) -> Response:
    await runs.delete_runs(ctx, at, body.runs_names)
    return answers.nothing()


@router.post(f"{PROJECT}/watch", openapi_extra=answering(str))
async def watch_runs(
    at: MemberOf, ctx: Ctx, body: Annotated[WatchRunsRequest, JsonBody(WatchRunsRequest)]
) -> Response:
    """Newline-delimited JSON: `{"type": "run", "run": …}` now and at each change, `{"type": "ping"}` in between.

    With `run_name` it ends after the run was told finished. An addition to the reference.
    """
    return await lines(watching.watch_runs(ctx, at, body.run_name))
