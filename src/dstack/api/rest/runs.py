"""Runs: `/api/runs/*` and `/api/project/{project}/runs/*`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dstack.api.rest.connection import Connection

Document = dict[str, Any]
Documents = list[Document]


class RunsApi:
    """Calls about runs; a run is the API's JSON object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, project: str, *, only_active: bool = False, limit: int = 100) -> Documents:
        """The runs of a project, the newest first; of each job the last submission."""
        body = {
            "project_name": project,
            "repo_id": None,
            "username": None,
            "only_active": only_active,
            "include_jobs": True,
            "job_submissions_limit": 1,
            "prev_submitted_at": None,
            "prev_run_id": None,
            "limit": limit,
            "ascending": False,
        }
        runs: Documents = self._connection.post("/api/runs/list", body)
        return runs

    def get(self, project: str, *, name: str | None = None, run_id: str | None = None) -> Document:
        """The run of that name or id. Raises `ResourceNotExists`."""
        run: Document = self._connection.post(f"/api/project/{project}/runs/get", {"run_name": name, "id": run_id})
        return run

    def get_plan(
        self,
        project: str,
        run_spec: Document,
        *,
        max_offers: int | None = None,
        full_offers: bool = False,
        unallocated: bool = False,
        for_offers_only: bool = False,
    ) -> Document:
        """What applying the spec would do."""
        body = {
            "run_spec": run_spec,
            "max_offers": max_offers,
            "full_offers": full_offers,
            "unallocated_resources": unallocated,
            "for_offers_only": for_offers_only,
        }
        plan: Document = self._connection.post(f"/api/project/{project}/runs/get_plan", body)
        return plan

    def apply(
        self, project: str, run_spec: Document, current_resource: Document | None, *, force: bool = False
    ) -> Document:
        """Submits or updates a run. `current_resource` is the run as the plan showed it."""
        plan = {"run_spec": run_spec, "current_resource": current_resource}
        run: Document = self._connection.post(f"/api/project/{project}/runs/apply", {"plan": plan, "force": force})
        return run

    def stop(self, project: str, names: Sequence[str], *, abort: bool = False) -> None:
        """Asks the runs to stop; with `abort`, without waiting for their jobs to end by themselves."""
        self._connection.post(f"/api/project/{project}/runs/stop", {"runs_names": [*names], "abort": abort})

    def delete(self, project: str, names: Sequence[str]) -> None:
        """Removes finished runs."""
        self._connection.post(f"/api/project/{project}/runs/delete", {"runs_names": [*names]})

    @contextmanager
    def watch(self, project: str, name: str | None) -> Iterator[Iterator[Document]]:
        """A stream of `{"type": "run", "run": …}` at each change, of one run or of all, and of `{"type": "ping"}`.

        Raises `NotSupported` from servers without it.
        """
        with self._connection.stream(f"/api/project/{project}/runs/watch", {"run_name": name}) as lines:
            yield lines

    def list_gpus(
        self, project: str, run_spec: Document, group_by: Sequence[str], *, full_offers: bool, unallocated: bool
    ) -> Documents:
        """The GPUs that the offers for a spec have, grouped."""
        body = {
            "run_spec": run_spec,
            "group_by": [*group_by],
            "full_offers": full_offers,
            "unallocated_resources": unallocated,
        }
        gpus: Documents = self._connection.post(f"/api/project/{project}/gpus/list", body)["gpus"]
        return gpus
