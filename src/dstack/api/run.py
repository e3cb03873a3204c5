"""A run as programs see it: its status, its log, and this machine attached to it."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from dstack.api.attach import Attachment, find_job, job_status
from dstack.api.errors import NotSupported
from dstack.api.rest.client import RestClient
from dstack.api.ssh.ports import ReservedPorts, find_ports_here, override, wishes_of
from dstack.core.errors import ResourceNotExists
from dstack.core.jobs import JobProvisioningData
from dstack.core.runs import Run as RunModel
from dstack.core.runs import RunStatus, ServiceSpec

POLL_INTERVAL = 1.0
"""Seconds between two looks at a run that is waited for."""

Document = dict[str, Any]


class Run:
    """A run as it was last seen; `refresh` looks again."""

    def __init__(
        self, rest: RestClient, project: str, model: RunModel, reserved_ports: ReservedPorts | None = None
    ) -> None:
        self._rest = rest
        self._project = project
        self._model = model
        self._reserved_ports = reserved_ports
        self._attachment: Attachment | None = None

    @property
    def name(self) -> str:
        """Its name in the project."""
        return self._model.run_spec.run_name or ""

    @property
    def status(self) -> RunStatus:
        """Where it is in its life."""
        return self._model.status

    @property
    def model(self) -> RunModel:
        """All that the server says of it."""
        return self._model

    @property
    def backend(self) -> str | None:
        """Where its job runs; None before it is placed."""
        placed = self._placed()
        return None if placed is None else placed.backend.value

    @property
    def hostname(self) -> str | None:
        """The host of its job; None before it is placed."""
        placed = self._placed()
        return None if placed is None else placed.hostname

    @property
    def ports(self) -> dict[int, int] | None:
        """Local ports by those of the job, while this machine is attached."""
        return None if self._attachment is None else self._attachment.ports

    @property
    def service_url(self) -> str | None:
        """Where the service is called; None when it is none."""
        service = self._model.service
        return None if service is None else self._absolute(service.url)

    @property
    def service_model(self) -> ServiceSpec | None:
        """The service as the server publishes it, its model among it; None without a model."""
        service = self._model.service
        return service if service is not None and service.model is not None else None

    def refresh(self) -> None:
        """Asks the server how it is now."""
        self._get()

    def stop(self, abort: bool = False) -> None:
        """Asks it to stop; with `abort`, without waiting for its jobs to end by themselves."""
        self._rest.runs.stop(self._project, [self.name], abort=abort)

    def wait(self) -> RunStatus:
        """Returns when it is over."""
        while not self.status.is_finished():
            time.sleep(POLL_INTERVAL)
            self.refresh()
        return self.status

    def attach(
        self,
        ssh_identity_file: str | None = None,
        bind_address: str | None = None,
        ports_overrides: Mapping[int, int] | None = None,
        replica_num: int = 0,
        job_num: int = 0,
    ) -> bool:
        """Waits until the job runs, forwards its ports to this machine and makes `ssh <run name>` work.

        `ports_overrides`: local ports by those of the job. False when the run was over before. Raises AttachError
        when there is no way in, or a port is in use.
        """
        if self._attachment is not None:
            return True
        document = self._wait_until_running(replica_num, job_num)
        if document is None:
            self.detach()
            return False
        job = find_job(document, replica=replica_num, number=job_num)
        flags = [f"{local}:{remote}" for remote, local in (ports_overrides or {}).items()]
        wishes = override(wishes_of(job["job_spec"]), flags)
        ports = self._take_ports(bind_address, is_overridden=bool(flags))
        ports.reserve(wishes, find_ports_here(job))
        attachment = Attachment(self._rest, document, job, ports=ports, ssh_identity=ssh_identity_file)
        try:
            attachment.wait_ready()
        except BaseException:
            attachment.close()
            raise
        self._attachment = attachment
        return True

    def detach(self) -> None:
        """Ends what `attach` began and frees reserved ports; the run goes on."""
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None
        if self._reserved_ports is not None:
            self._reserved_ports.release()
            self._reserved_ports = None

    def logs(
        self,
        start_time: datetime | str | None = None,
        diagnose: bool = False,
        replica_num: int = 0,
        job_num: int = 0,
    ) -> Iterator[bytes]:
        """A job's log from `start_time` (ISO 8601, exclusive) on. Raises ResourceNotExists.

        While attached, to the job's end, as it is written; else what is stored.
        """
        since = start_time.isoformat() if isinstance(start_time, datetime) else start_time
        submission_id = self._submission_id(replica_num, job_num)
        if self._attachment is None or diagnose:
            yield from self._stored_log(submission_id, since, diagnose)
            return
        try:
            yield from self._live_log(submission_id, since)
        except NotSupported:
            yield from self._polled_log(submission_id, since, (replica_num, job_num))

    def _live_log(self, submission_id: str, since: str | None) -> Iterator[bytes]:
        with self._rest.logs.follow(self._project, self.name, submission_id, start_time=since) as lines:
            for line in lines:
                if line.get("type") == "end":
                    return
                if "message" in line:
                    yield base64.b64decode(line["message"])

    def _polled_log(self, submission_id: str, since: str | None, place: tuple[int, int]) -> Iterator[bytes]:
        is_last = False
        while True:
            for entry in self._entries(submission_id, since, diagnose=False):
                since = entry["timestamp"]
                yield base64.b64decode(entry["message"])
            if is_last:
                return
            is_last = self._status_of(self._get(), place) != "running"
            if not is_last:
                time.sleep(POLL_INTERVAL)

    def _stored_log(self, submission_id: str, since: str | None, diagnose: bool) -> Iterator[bytes]:
        for entry in self._entries(submission_id, since, diagnose=diagnose):
            yield base64.b64decode(entry["message"])

    def _entries(self, submission_id: str, since: str | None, *, diagnose: bool) -> Iterator[Document]:
        token: str | None = None
        while True:
            page = self._rest.logs.poll(
                self._project, self.name, submission_id, start_time=since, next_token=token, diagnose=diagnose
            )
            yield from page["logs"]
            token = page["next_token"]
            if token is None:
                return

    def _get(self) -> Document:
        document = self._rest.runs.get(self._project, run_id=str(self._model.id))
        self._model = RunModel.model_validate(document, extra="ignore")
        return document

    def _wait_until_running(self, replica_num: int, job_num: int) -> Document | None:
        """None when the run is over."""
        while True:
            document = self._get()
            if self.status.is_finished():
                return None
            if self._status_of(document, (replica_num, job_num)) == "running":
                return document
            time.sleep(POLL_INTERVAL / 5)

    def _take_ports(self, bind_address: str | None, *, is_overridden: bool) -> ReservedPorts:
        """Those reserved when the run was submitted, unless others are asked for."""
        ports = self._reserved_ports
        if ports is not None:
            ports.release()
        if ports is None or is_overridden or bind_address not in (None, ports.host):
            ports = self._reserved_ports = ReservedPorts(bind_address or "localhost")
        return ports

    def _status_of(self, document: Document, place: tuple[int, int]) -> str | None:
        for job in document["jobs"]:
            if (job["job_spec"]["replica_num"], job["job_spec"]["job_num"]) == place:
                return job_status(job)
        return None

    def _submission_id(self, replica_num: int, job_num: int) -> str:
        for job in self._model.jobs:
            is_wanted = (job.job_spec.replica_num, job.job_spec.job_num) == (replica_num, job_num)
            if is_wanted and job.job_submissions:
                return str(job.job_submissions[-1].id)
        raise ResourceNotExists(f"The run {self.name} has no replica {replica_num} with a job {job_num}")

    def _placed(self) -> JobProvisioningData | None:
        latest = self._model.latest_job_submission
        return None if latest is None else latest.job_provisioning_data

    def _absolute(self, url: str) -> str:
        return url if "://" in url else f"{self._rest.base_url}/{url.lstrip('/')}"
