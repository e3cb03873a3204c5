"""Runs over the REST API: planning, submitting, listing, stopping, watching. Nothing moves them forward here."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, update
from tests.fixtures.api import Api

from dstack.agent.protocol import TaskState
from dstack.server.clock import now
from dstack.server.db.engine import wake
from dstack.server.db.queries import watching as host_queries
from dstack.server.db.tables import EventRow, JobRow, RunRow
from dstack.server.operations import watching
from dstack.server.operations.context import InProject
from dstack.server.operations.finished_runs import FinishedRuns
from dstack.server.operations.runs import changed
from dstack.server.stores.logs.base import LogKey


def task(name: str | None = "t1", **configuration: Any) -> dict[str, Any]:
    return {"configuration": {"type": "task", "name": name, "commands": ["echo hello"], **configuration}}


def service(name: str = "s1", **configuration: Any) -> dict[str, Any]:
    return {
        "configuration": {"type": "service", "name": name, "commands": ["serve"], "port": 8000, **configuration}
    }


async def submit(api: Api, spec: dict[str, Any], current: Any = None) -> dict[str, Any]:
    body = {"plan": {"run_spec": spec, "current_resource": current}, "force": False}
    run: dict[str, Any] = await api.ok("project/main/runs/apply", body)
    return run


async def finish(api: Api, run: dict[str, Any], status: str = "done") -> None:
    """As the orchestrator would."""
    run_id = uuid.UUID(run["id"])
    async with api.context.database.transaction() as session:
        await session.execute(
            update(JobRow).where(JobRow.run_id == run_id).values(status=status, finished_at=now())
        )
        await session.execute(update(RunRow).where(RunRow.id == run_id).values(status=status, finished_at=now()))
        project_id = await session.scalar(select(RunRow.project_id).where(RunRow.id == run_id))
        assert project_id is not None
        wake(session, changed(project_id, run_id))


async def test_a_plan_shows_the_effective_spec_and_stores_nothing(api: Api) -> None:
    plan = await api.ok("project/main/runs/get_plan", {"run_spec": task()})
    assert plan["action"] == "create"
    assert plan["current_resource"] is None
    effective = plan["effective_run_spec"]
    assert (effective["run_name"], effective["repo_id"], effective["configuration"]["priority"]) == (
        "t1",
        "none",
        0,
    )
    assert effective["ssh_key_pub"].startswith("ssh-ed25519 ")
    assert plan["job_plans"][0]["job_spec"]["job_name"] == "t1-0-0"
    assert await api.ok("runs/list", {}) == []


async def test_a_submitted_run_is_shown_with_its_jobs(api: Api) -> None:
    run = await submit(api, task())
    assert (run["status"], run["user"], run["project_name"]) == ("submitted", "admin", "main")
    submission = run["jobs"][0]["job_submissions"][0]
    assert run["latest_job_submission"] == submission
    assert submission["status"] == "submitted"
    assert await api.ok("project/main/runs/get", {"run_name": "t1"}) == run
    assert await api.ok("project/main/runs/get", {"id": run["id"]}) == run
    assert await api.ok("runs/list", {"project_name": "main", "only_active": True}) == [run]
    brief = (await api.ok("runs/list", {"include_jobs": False}))[0]
    assert (brief["jobs"], brief["latest_job_submission"]) == ([], None)


async def test_the_submission_its_jobs_and_its_event_are_one_transaction(api: Api) -> None:
    run = await submit(api, task(nodes=3))
    assert [job["job_spec"]["job_name"] for job in run["jobs"]] == ["t1-0-0", "t1-1-0", "t1-2-0"]
    events = await api.ok("events/list", {"target_runs": [run["id"]]})
    assert [event["message"] for event in events] == ["Run submitted"]
    assert {target["type"] for target in events[0]["targets"]} == {"run", "job"}


async def test_a_service_gets_its_url_and_as_many_replicas_as_it_asks_for(api: Api) -> None:
    run = await submit(api, service(replicas=2))
    assert run["service"]["url"] == "/proxy/services/main/s1/"
    assert [job["job_spec"]["replica_num"] for job in run["jobs"]] == [0, 1]


async def test_a_run_without_a_name_gets_one(api: Api) -> None:
    first, second = await submit(api, task(None)), await submit(api, task(None))
    assert first["run_spec"]["run_name"]
    assert first["run_spec"]["run_name"] != second["run_spec"]["run_name"]


async def test_an_identical_spec_is_an_update_of_the_active_run(api: Api) -> None:
    run = await submit(api, task())
    plan = await api.ok("project/main/runs/get_plan", {"run_spec": task()})
    assert plan["action"] == "update"
    assert plan["effective_run_spec"] == plan["current_resource"]["run_spec"] == run["run_spec"]
    higher = await submit(api, task(priority=5), plan["current_resource"])
    assert (higher["id"], higher["deployment_num"]) == (run["id"], 1)
    assert higher["run_spec"]["configuration"]["priority"] == 5


async def test_an_active_run_cannot_be_replaced_without_being_stopped(api: Api) -> None:
    run = await submit(api, task())
    plan = await api.ok("project/main/runs/get_plan", {"run_spec": task(commands=["true"])})
    assert plan["action"] == "create"
    body: dict[str, Any] = {"plan": {"run_spec": task(commands=["true"]), "current_resource": run}, "force": False}
    answer = await api.post("project/main/runs/apply", body)
    assert "stop it first" in answer.json()["detail"][0]["msg"]
    body["plan"]["current_resource"] = None
    answer = await api.post("project/main/runs/apply", body)
    assert "has changed since the plan" in answer.json()["detail"][0]["msg"]


async def test_a_finished_run_makes_room_for_one_of_the_same_name(api: Api) -> None:
    run = await submit(api, task())
    await finish(api, run)
    again = await submit(api, task(), await api.ok("project/main/runs/get", {"run_name": "t1"}))
    assert again["id"] != run["id"]
    assert (await api.ok("project/main/runs/get", {"id": run["id"]}))["deleted"] is True
    assert [one["id"] for one in await api.ok("runs/list", {})] == [again["id"]]


async def test_stopping_records_the_intent_once(api: Api) -> None:
    run = await submit(api, task())
    for _ in range(2):
        assert await api.ok("project/main/runs/stop", {"runs_names": ["t1", "unknown"], "abort": False}) is None
    await api.ok("project/main/runs/stop", {"runs_names": ["t1"], "abort": True})
    async with api.context.database.session() as session:
        row = await session.get_one(RunRow, uuid.UUID(run["id"]))
        messages = list(
            await session.scalars(select(EventRow.message).where(EventRow.message.like("Run % by user")))
        )
    assert row.stop_requested == "aborted_by_user"
    assert sorted(messages) == ["Run aborted by user", "Run stopped by user"]


async def test_only_finished_runs_are_deleted(api: Api) -> None:
    run = await submit(api, task())
    answer = await api.post("project/main/runs/delete", {"runs_names": ["t1"]})
    assert "Cannot delete active runs: t1" in answer.json()["detail"][0]["msg"]
    await finish(api, run)
    assert await api.ok("project/main/runs/delete", {"runs_names": ["t1", "unknown"]}) is None
    gone = await api.post("project/main/runs/get", {"run_name": "t1"})
    assert (gone.status_code, gone.json()["detail"][0]["code"]) == (400, "resource_not_exists")


async def test_runs_are_listed_in_pages(api: Api) -> None:
    names = [(await submit(api, task(f"run-{number}")))["run_spec"]["run_name"] for number in range(5)]
    seen: list[str] = []
    page: list[Any] = await api.ok("runs/list", {"limit": 2})
    while page:
        seen += [run["run_spec"]["run_name"] for run in page]
        last = {"prev_submitted_at": page[-1]["submitted_at"], "prev_run_id": page[-1]["id"]}
        page = await api.ok("runs/list", {"limit": 2, **last})
    assert seen == names[::-1]


async def test_users_see_the_runs_of_their_projects(api: Api) -> None:
    await submit(api, task())
    stranger, member = await api.as_user("stranger"), await api.as_user("member", role="user")
    assert await stranger.ok("runs/list", {}) == []
    assert len(await member.ok("runs/list", {})) == 1
    assert (await stranger.post("runs/list", {"project_name": "main"})).status_code == 403


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        (task("Bad Name"), 400, "not a valid"),
        (service(gateway=True), 400, "no default gateway"),
        ({**task(), "repo_id": "r", "repo_data": {"repo_type": "remote", "repo_name": "r"}}, 400, "dstack init"),
        ({**task(), "file_archives": [{"id": str(uuid.uuid4()), "path": "x"}]}, 400, "upload it first"),
        (task(volumes=["v1:/data"]), 400, "Volume 'v1' does not exist"),
    ],
)
async def test_what_cannot_be_run_is_explained(sqlite_api: Api, spec: Any, code: int, text: str) -> None:
    body = {"plan": {"run_spec": spec, "current_resource": None}, "force": False}
    answer = await sqlite_api.post("project/main/runs/apply", body)
    assert answer.status_code == code
    assert text in answer.text


async def test_two_that_apply_the_same_name_at_once_make_one_run(api: Api) -> None:
    body = {"plan": {"run_spec": task(), "current_resource": None}, "force": False}
    answers = await asyncio.gather(*(api.post("project/main/runs/apply", body) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]


async def main_of(api: Api) -> InProject:
    project = await api.context.access.find_project("main")
    caller = await api.context.access.authenticate(api.token or "")
    assert project is not None
    assert caller is not None
    return InProject(caller, project, caller.role_in(project))


async def next_line(stream: AsyncIterator[bytes]) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(await asyncio.wait_for(anext(stream), 10))
    return line


async def test_better_b13_a_watched_run_is_told_at_once_and_at_each_change_until_it_has_finished(api: Api) -> None:
    run = await submit(api, task())
    stream = watching.watch_runs(api.context, await main_of(api), "t1")
    assert (await next_line(stream)) == {"type": "run", "run": run}
    change = asyncio.ensure_future(next_line(stream))
    await asyncio.sleep(0)
    await finish(api, run)
    assert (await change)["run"]["status"] == "done"
    assert [line async for line in stream] == []


async def test_the_progress_of_a_pull_is_shown_while_the_job_pulls(api: Api) -> None:
    run = await submit(api, task())
    job_id = uuid.UUID(run["jobs"][0]["job_submissions"][0]["id"])
    progress = {"downloaded_bytes": 5, "extracted_bytes": 1, "total_bytes": 9, "is_total_bytes_final": False}
    state = json.dumps(TaskState(str(job_id), 1, "pulling", pull_progress=progress).to_json())
    for status, shown in (("pulling", progress), ("running", None)):
        async with api.context.database.transaction() as session:
            values = {"status": status, "task_state": state}
            await session.execute(update(JobRow).where(JobRow.id == job_id).values(values))
        run = await api.ok("project/main/runs/get", {"run_name": "t1"})
        assert run["latest_job_submission"]["image_pull_progress"] == shown


async def test_better_b13_a_watched_run_tells_how_far_its_image_is(api: Api) -> None:
    run = await submit(api, task())
    job_id = uuid.UUID(run["jobs"][0]["job_submissions"][0]["id"])
    async with api.context.database.transaction() as session:
        await session.execute(update(JobRow).where(JobRow.id == job_id).values(status="pulling"))
    stream = watching.watch_runs(api.context, await main_of(api), "t1")
    assert (await next_line(stream))["run"]["latest_job_submission"]["image_pull_progress"] is None
    change = asyncio.ensure_future(next_line(stream))
    await asyncio.sleep(0)
    progress = {"downloaded_bytes": 5, "extracted_bytes": 1, "total_bytes": 9, "is_total_bytes_final": True}
    state = TaskState(str(job_id), 1, "pulling", pull_progress=progress)
    async with api.context.database.transaction() as session:
        jobs = await host_queries.get_watched_jobs(session, [job_id])
        await host_queries.record_task_states(session, {job_id: json.dumps(state.to_json())})
        host_queries.tell_of_pulling(session, jobs[job_id])
    assert (await change)["run"]["latest_job_submission"]["image_pull_progress"] == progress
    await finish(api, run)
    assert [line["run"]["status"] for line in [json.loads(text) async for text in stream]] == ["done"]


async def test_better_b13_all_runs_of_a_project_are_watched(api: Api) -> None:
    stream = watching.watch_runs(api.context, await main_of(api), None)
    assert (await next_line(stream)) == {"type": "ping"}
    change = asyncio.ensure_future(next_line(stream))
    await asyncio.sleep(0)
    run = await submit(api, task())
    assert (await change)["run"]["id"] == run["id"]
    api.context.stopping.set()
    assert [line async for line in stream] == []


async def test_an_unknown_run_cannot_be_watched(api: Api) -> None:
    answer = await api.post("project/main/runs/watch", {"run_name": "nope"})
    assert (answer.status_code, answer.json()["detail"][0]["code"]) == (400, "resource_not_exists")


async def test_better_b13_logs_are_followed_until_the_job_has_ended(api: Api) -> None:
    run = await submit(api, task())
    submission_id = uuid.UUID(run["latest_job_submission"]["id"])
    key = LogKey("main", "t1", submission_id)
    await api.context.logs.append(key, [(1_000_000, b"one\n")], 10)
    stream = watching.follow_logs(
        api.context, await main_of(api), "t1", submission_id, start_time=None, next_token=None
    )
    assert (await next_line(stream))["message"] == "b25lCg=="
    more = asyncio.ensure_future(next_line(stream))
    await asyncio.sleep(0)
    await api.context.logs.append(key, [(2_000_000, b"two\n")], 20)
    assert (await more)["message"] == "dHdvCg=="
    await finish(api, run)
    assert [json.loads(line) async for line in stream] == [{"type": "end"}]
    page = await api.ok(
        "project/main/logs/poll", {"run_name": "t1", "job_submission_id": str(submission_id), "limit": 1}
    )
    assert (len(page["logs"]), page["next_token"]) == (1, "1")


async def test_an_ended_run_is_answered_from_memory_as_from_the_database(api: Api) -> None:
    run = await submit(api, task())
    [active] = await api.ok("runs/list", {"project_name": "main"})
    assert active["status"] == "submitted"
    await finish(api, run)
    page = await api.ok("runs/list", {"project_name": "main"})
    assert [found["status"] for found in page] == ["done"]
    assert page == [await api.ok("project/main/runs/get", {"run_name": "t1"})]
    assert await api.ok("runs/list", {"project_name": "main"}) == page
    [without_jobs] = await api.ok("runs/list", {"project_name": "main", "include_jobs": False})
    assert (without_jobs["id"], without_jobs["jobs"]) == (run["id"], [])
    await api.ok("project/main/runs/delete", {"runs_names": ["t1"]})
    assert await api.ok("runs/list", {"project_name": "main"}) == []


async def test_answers_at_hand_are_bounded_in_bytes(api: Api) -> None:
    kept = api.context.finished_runs = FinishedRuns(max_bytes=6000)
    for name in ("a1", "a2", "a3"):
        await finish(api, await submit(api, task(name)))
    page = await api.ok("runs/list", {"project_name": "main"})
    assert [run["run_spec"]["run_name"] for run in page] == ["a3", "a2", "a1"]
    assert 0 < kept.size_bytes <= 6000
    assert await api.ok("runs/list", {"project_name": "main"}) == page
