"""Metrics: `/api/project/{project}/metrics/*`."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from dstack.api.rest.connection import Connection


class MetricsApi:
    """Calls about what jobs use."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get_job(
        self, project: str, run_name: str, *, replica_num: int = 0, job_num: int = 0, limit: int = 1000
    ) -> list[dict[str, Any]]:
        """The newest values of each series (`name`, `timestamps`, `values`), newest first; none: not measured."""
        path = f"/api/project/{project}/metrics/job/{quote(run_name, safe='')}"
        answer = self._connection.get(f"{path}?replica_num={replica_num}&job_num={job_num}&limit={limit}")
        series: list[dict[str, Any]] = answer["metrics"]
        return series
