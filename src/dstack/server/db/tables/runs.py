"""Runs and jobs. A row of `jobs` is one submission of a job; its id is the task's id on the agent."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import Index, String, text, true
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import Reconciled, Row, references

RUN_IS_ACTIVE = text("runs.status NOT IN ('terminated', 'failed', 'done') AND NOT runs.deleted")
"""Literal, so that both engines see that a query may use the partial indexes."""
_ACTIVE_ROWS = text("status NOT IN ('terminated', 'failed', 'done') AND NOT deleted")


class RunRow(Reconciled, Row):
    __tablename__ = "runs"
    __table_args__ = (
        Index("ix_runs_project_name", "project_id", "run_name"),
        Index("ix_runs_project_submitted", "project_id", "submitted_at", "id"),
        Index("ix_runs_submitted", "submitted_at", "id"),
        Index(
            "ix_runs_project_active",
            "project_id",
            "deleted",  # always false; one more column to compare is what has SQLite take this index
            "submitted_at",
            "id",
            sqlite_where=_ACTIVE_ROWS,
            postgresql_where=_ACTIVE_ROWS,
        ),
        Index("ix_runs_active", "submitted_at", "id", sqlite_where=_ACTIVE_ROWS, postgresql_where=_ACTIVE_ROWS),
    )

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    user_id: Mapped[uuid.UUID] = mapped_column(references("users.id"))
    repo_id: Mapped[uuid.UUID | None] = mapped_column(references("repos.id"))
    fleet_id: Mapped[uuid.UUID | None] = mapped_column(references("fleets.id"))
    gateway_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """Services that a gateway publishes; it may be gone by now."""
    gateway_error: Mapped[str | None]
    """Why no machine of the gateway publishes it."""
    run_name: Mapped[str] = mapped_column(String(100))
    submitted_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    run_spec: Mapped[str]
    """Canonical JSON of `RunSpec` as answered by the API."""
    service_spec: Mapped[str | None]
    priority: Mapped[int] = mapped_column(default=0)
    deployment_num: Mapped[int] = mapped_column(default=0)
    desired_replica_count: Mapped[int] = mapped_column(default=1)
    """Of all groups together."""
    replica_targets: Mapped[str | None]
    """Services: JSON of how many replicas each group is to have; None: the fewest it may have."""
    previous_run_spec: Mapped[str | None]
    """While a rollout goes on: canonical JSON of the `RunSpec` that is known to work."""
    rollout_error: Mapped[str | None]
    """Why the last rollout was given up; None: it was not."""
    termination_reason: Mapped[str | None] = mapped_column(String(64))
    termination_message: Mapped[str | None]
    stop_requested: Mapped[str | None] = mapped_column(String(32))
    """Intent of a user: `stopped_by_user` or `aborted_by_user`."""
    stop_requested_by: Mapped[uuid.UUID | None]
    resubmission_attempt: Mapped[int] = mapped_column(default=0)
    next_triggered_at: Mapped[datetime | None]
    deleted: Mapped[bool] = mapped_column(default=False)


class JobRow(Reconciled, Row):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_run", "run_id", "replica_num", "job_num", "submission_num"),
        Index("ix_jobs_project_status", "project_id", "status"),
    )

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    run_id: Mapped[uuid.UUID] = mapped_column(references("runs.id", ondelete="CASCADE"))
    fleet_id: Mapped[uuid.UUID | None] = mapped_column(references("fleets.id"))
    instance_id: Mapped[uuid.UUID | None] = mapped_column(references("instances.id"), index=True)
    replica_num: Mapped[int]
    job_num: Mapped[int]
    job_name: Mapped[str] = mapped_column(String(120))
    submission_num: Mapped[int] = mapped_column(default=0)
    deployment_num: Mapped[int] = mapped_column(default=0)
    priority: Mapped[int] = mapped_column(default=0)
    submitted_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    job_spec: Mapped[str]
    """Canonical JSON of `JobSpec` as answered by the API."""
    node_key: Mapped[str | None]
    """Node 0 of several, encrypted: JSON of the pair by which the nodes reach each other, `[private, public]`."""
    provisioning_data: Mapped[str | None]
    """Canonical JSON of `JobProvisioningData`."""
    runtime_data: Mapped[str | None]
    """Canonical JSON of `JobRuntimeData`."""
    blocks: Mapped[int] = mapped_column(default=0)
    """Of the instance, while it is held."""
    gpus: Mapped[int | None]
    """Accelerators of the instance that the job was given; None before it was given any place."""
    capacity_error: Mapped[str | None]
    """Why the last attempt to place it failed; cleared when placed."""
    provisioned_at: Mapped[datetime | None]
    termination_reason: Mapped[str | None] = mapped_column(String(64))
    termination_reason_message: Mapped[str | None]
    terminate_requested: Mapped[str | None] = mapped_column(String(64))
    """Intent: the reason with which the run (or a policy) wants it ended."""
    exit_status: Mapped[int | None]
    task_state: Mapped[str | None]
    """JSON of the agent's `TaskState` as last seen."""
    logs_stored: Mapped[bool] = mapped_column(default=False)
    """Every byte of the ended task's log is in the store."""
    logs_error: Mapped[str | None]
    """Why logs can't be stored now (disk full, …)."""
    task_removed: Mapped[bool] = mapped_column(default=False)
    stop_sent_at: Mapped[datetime | None]
    unreachable_since: Mapped[datetime | None]
    last_active_at: Mapped[datetime | None]
    """Dev environments that run: when somebody was last connected, or else when it began to run."""
    registered: Mapped[bool] = mapped_column(default=False)
    """Service replicas: was ready and takes traffic until it is to end."""
    probe_streaks: Mapped[str | None]
    """JSON: of each probe, how many times in a row it has succeeded. None: there are none, or it does not run."""
    healthy: Mapped[bool] = mapped_column(default=True, server_default=true())
    """False while a probe fails, or its port is not listened on yet: others are preferred."""
    drain_started_at: Mapped[datetime | None]
    """Since when the replica gets no new requests and those on their way are waited for."""
    service_address: Mapped[str | None]
    """Where the proxy reaches the replica: `host:port` or `unix:/path`, once running."""


class ServiceLoadRow(Row):
    """What one server process has seen of the requests to a service. Written every few seconds, or at once."""

    __tablename__ = "service_loads"

    run_id: Mapped[uuid.UUID] = mapped_column(references("runs.id", ondelete="CASCADE"), primary_key=True)
    server: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    """One start of a server process."""
    since: Mapped[datetime]
    """When that process began to count."""
    written_at: Mapped[datetime]
    requests_30: Mapped[int]
    requests_60: Mapped[int]
    requests_300: Mapped[int]
    """Answered in the last so many seconds."""
    in_flight: Mapped[int]
    """Not answered yet, those that are held included."""
    replicas: Mapped[str]
    """JSON: requests on their way by address of the replica, where there are any."""
    windows: Mapped[str] = mapped_column(default="{}", server_default="{}")
    """JSON: by window in seconds, `proxy.stats.Counts` of what happened in it."""
