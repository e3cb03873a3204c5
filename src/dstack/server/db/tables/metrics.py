"""What jobs used, measured every few seconds while they ran."""

from __future__ import annotations

import uuid

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import Row


class JobMetricsPointRow(Row):
    """One measurement. Without a foreign key: points of jobs that are gone end with their time to live."""

    __tablename__ = "job_metrics_points"

    job_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    timestamp_micro: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False, index=True)
    """By the clock of the host."""
    cpu_usage_micro: Mapped[int] = mapped_column(BigInteger)
    """Since the start of the job."""
    memory_usage_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_working_set_bytes: Mapped[int] = mapped_column(BigInteger)
    gpus: Mapped[str]
    """JSON list of the agent's `GpuMetrics`."""
