"""Runs as the REST API shows them, put together from stored JSON text without parsing it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.jobs import JobStatus, JobTerminationReason
from dstack.core.runs import RunStatus, RunTerminationReason
from dstack.server import clock
from dstack.server.db.queries import loads
from dstack.server.db.queries import runs as queries
from dstack.server.db.queries.loads import Seen
from dstack.server.operations import connection_info, service_stats
from dstack.server.operations.connection_info import Door

Document = dict[str, Any]

NO_FLEETS = "No fleets"
"""How the message of a job begins for which the project has no fleet that may be used."""
_RUN_ERRORS = {
    RunTerminationReason.RETRY_LIMIT_EXCEEDED.value: "retry limit exceeded",
    RunTerminationReason.SERVER_ERROR.value: "server error",
    RunTerminationReason.GATEWAY_ERROR.value: "gateway error",
}


def dump(answer: Any) -> bytes:
    """JSON; times in UTC with `Z`."""
    return orjson.dumps(answer, option=orjson.OPT_UTC_Z, default=_plain)


def _plain(value: Any) -> str:
    """The UUIDs of PostgreSQL's driver are a class of their own."""
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in an answer")


async def load(
    session: AsyncSession,
    runs: Sequence[RowMapping],
    *,
    ssh: Door,
    with_jobs: bool = True,
    submissions: int | None = None,
) -> list[Document]:
    """One query for the jobs of all the runs. `submissions`: only the newest so many of each job.

    `ssh`: the door into jobs that run (`Context.ssh`).
    """
    jobs: dict[UUID, list[RowMapping]] = {run["id"]: [] for run in runs}
    if with_jobs and submissions != 0:
        for job in await queries.list_jobs(session, [run["id"] for run in runs], submissions=submissions):
            jobs[job["run_id"]].append(job)
    services = [run["id"] for run in runs if run["service_spec"] is not None and run["finished_at"] is None]
    seen = await loads.read_all(session, services, clock.now()) if services else {}
    return [to_document(run, jobs[run["id"]], ssh, seen.get(run["id"])) for run in runs]


def to_document(run: RowMapping, rows: Sequence[RowMapping], ssh: Door, seen: Seen | None) -> Document:
    """`rows`: the submissions of its jobs in the order of replica, job, submission. `seen`: of a service's
    requests."""
    by_job = _by_job(rows)
    jobs = [_job(run, submissions, ssh) for submissions in by_job]
    latest_rows = [submissions[-1] for submissions in by_job]
    latest = max(range(len(jobs)), key=lambda i: latest_rows[i]["submitted_at"], default=None)
    reason = run["termination_reason"]
    return {
        "id": run["id"],
        "project_name": run["project_name"],
        "user": run["user_name"],
        "fleet": {"id": run["fleet_id"], "name": run["fleet_name"]} if run["fleet_id"] else None,
        "submitted_at": run["submitted_at"],
        "last_processed_at": run["last_processed_at"],
        "status": run["status"],
        "status_message": _run_status_message(run, latest_rows),
        "termination_reason": reason,
        "run_spec": orjson.Fragment(run["run_spec"]),
        "jobs": jobs,
        "latest_job_submission": None if latest is None else jobs[latest]["job_submissions"][-1],
        "cost": sum(_cost(row) for row in rows),
        "service": _fragment(run["service_spec"]),
        "service_stats": None if seen is None else service_stats.to_document(seen),
        "deployment_num": run["deployment_num"],
        "error": _RUN_ERRORS.get(reason) or run["rollout_error"],
        "deleted": run["deleted"],
        "next_triggered_at": run["next_triggered_at"],
    }


def _by_job(rows: Sequence[RowMapping]) -> list[list[RowMapping]]:
    jobs: dict[tuple[int, int], list[RowMapping]] = {}
    for row in rows:
        jobs.setdefault((row["replica_num"], row["job_num"]), []).append(row)
    return list(jobs.values())


def _job(run: RowMapping, submissions: Sequence[RowMapping], ssh: Door) -> Document:
    latest = submissions[-1]
    return {
        "job_spec": orjson.Fragment(latest["job_spec"]),
        "job_submissions": [_submission(row, ssh) for row in submissions],
        "job_connection_info": connection_info.of_job(run, latest, ssh),
    }


def _submission(row: RowMapping, ssh: Door) -> Document:
    reason = row["termination_reason"]
    return {
        "id": row["id"],
        "submission_num": row["submission_num"],
        "deployment_num": row["deployment_num"],
        "submitted_at": row["submitted_at"],
        "last_processed_at": row["last_processed_at"],
        "finished_at": row["finished_at"],
        "inactivity_secs": _inactivity_secs(row),
        "status": row["status"],
        "status_message": job_status_message(row),
        "termination_reason": reason,
        "termination_reason_message": row["termination_reason_message"] or _waiting_message(row),
        "exit_status": row["exit_status"],
        "job_provisioning_data": connection_info.provisioning_data(row, ssh),
        "job_runtime_data": _fragment(row["runtime_data"]),
        "error": JobTerminationReason(reason).error if reason else None,
        "probes": _probes(row["probe_streaks"]),
        "image_pull_progress": _pull_progress(row),
    }


def _pull_progress(row: RowMapping) -> Document | None:
    """What the host told last of the image that it pulls; only then is its state parsed."""
    if row["status"] != JobStatus.PULLING.value or row["task_state"] is None:
        return None
    progress: Document | None = orjson.loads(row["task_state"])["pull_progress"]
    return progress


def _inactivity_secs(row: RowMapping) -> int | None:
    """For how long nobody has been connected to a dev environment that runs."""
    since: datetime | None = row["last_active_at"]
    if since is None or row["status"] != JobStatus.RUNNING.value:
        return None
    return max(int((clock.now() - since).total_seconds()), 0)


def _probes(streaks: str | None) -> list[Document]:
    return [] if streaks is None else [{"success_streak": streak} for streak in orjson.loads(streaks)]


def _waiting_message(row: RowMapping) -> str | None:
    """What people want to know while the job goes on: why it waits, or why its logs lag behind."""
    message: str | None = (
        row["capacity_error"] if row["status"] == JobStatus.SUBMITTED.value else row["logs_error"]
    )
    return message


def job_status_message(row: RowMapping) -> str:
    """The word for people (reference: lifecycle, section 4)."""
    status, reason = JobStatus(row["status"]), row["termination_reason"]
    if status is JobStatus.DONE:
        return "exited (0)"
    if status is JobStatus.FAILED:
        if reason == JobTerminationReason.CONTAINER_EXITED_WITH_ERROR.value:
            return f"exited ({row['exit_status']})"
        if reason == JobTerminationReason.FAILED_TO_START_DUE_TO_NO_CAPACITY.value:
            no_fleets = (row["termination_reason_message"] or "").startswith(NO_FLEETS)
            return "no fleets" if no_fleets else "no capacity"
        return "interrupted" if reason == JobTerminationReason.INTERRUPTED_BY_NO_CAPACITY.value else "error"
    if status is JobStatus.TERMINATED and reason == JobTerminationReason.TERMINATED_BY_USER.value:
        return "stopped"
    return str(status.value)


def _run_status_message(run: RowMapping, latest: Sequence[RowMapping]) -> str:
    status = RunStatus(run["status"])
    if status.is_finished():
        reason = run["termination_reason"]
        word: str | None = RunTerminationReason(reason).status_message if reason else None
        return word or status.value
    if latest and all(row["status"] == JobStatus.PULLING.value for row in latest):
        return "pulling"
    if status in (RunStatus.SUBMITTED, RunStatus.PENDING) and run["resubmission_attempt"] > 0:
        return "retrying"
    return status.value


def _cost(row: RowMapping) -> float:
    """In dollars: the price of the instance for as long as the submission has had it."""
    text: str | None = row["provisioning_data"]
    if text is None or '"price":0.0,' in text:
        return 0.0
    started: datetime = row["provisioned_at"] or row["submitted_at"]
    ended: datetime = row["finished_at"] or row["last_processed_at"]
    price: float = orjson.loads(text)["price"]
    return price * max((ended - started).total_seconds(), 0.0) / 3600


def _fragment(text: str | None) -> orjson.Fragment | None:
    return None if text is None else orjson.Fragment(text)
