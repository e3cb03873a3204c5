"""Logs: `/api/project/{project}/logs/*`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dstack.api.rest.connection import Connection

PAGE = 1000
"""Entries in one answer, the most there may be."""


class LogsApi:
    """Calls about the logs of jobs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def poll(
        self,
        project: str,
        run_name: str,
        submission_id: str,
        *,
        start_time: str | None = None,
        next_token: str | None = None,
        diagnose: bool = False,
    ) -> dict[str, Any]:
        """One page of entries after `start_time` (ISO 8601, exclusive): `logs`, `external_url`, `next_token`."""
        body = {
            "run_name": run_name,
            "job_submission_id": submission_id,
            "start_time": start_time,
            "end_time": None,
            "descending": False,
            "next_token": next_token,
            "limit": PAGE,
            "diagnose": diagnose,
        }
        page: dict[str, Any] = self._connection.post(f"/api/project/{project}/logs/poll", body)
        return page

    @contextmanager
    def follow(
        self,
        project: str,
        run_name: str,
        submission_id: str,
        *,
        start_time: str | None = None,
        next_token: str | None = None,
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """A stream of entries as they are stored, ended by `{"type": "end"}` when the job's log is complete.

        Raises `NotSupported` from servers without it.
        """
        body = {
            "run_name": run_name,
            "job_submission_id": submission_id,
            "next_token": next_token,
            "start_time": start_time,
        }
        with self._connection.stream(f"/api/project/{project}/logs/follow", body) as lines:
            yield lines
