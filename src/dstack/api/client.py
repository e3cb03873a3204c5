"""The Python API: `Client` for programs that run workloads. Heavy to import; the CLI does without it.

client = Client.from_config()
run = client.runs.apply_configuration(TaskConfiguration(commands=["echo hello"]))
for chunk in run.logs():
    sys.stdout.buffer.write(chunk)
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from dstack.api.archives import upload_files
from dstack.api.config import resolve_project
from dstack.api.git import GitRepo
from dstack.api.rest.client import RestClient
from dstack.api.wire import dump_current_run, dump_run_spec
from dstack.core.configurations import AnyRunConfiguration
from dstack.core.configurations.profiles import Profile
from dstack.core.errors import ResourceNotExists
from dstack.core.repos import VIRTUAL_REPO_ID, RemoteRunRepoData, VirtualRunRepoData
from dstack.core.runs import Run as RunModel
from dstack.core.runs import RunPlan, RunSpec, RunStatus

POLL_INTERVAL = 1.0
"""Seconds between two looks at a run that is waited for."""


class Client:
    """A project of a server. Not for use by several threads at once; open one each."""

    def __init__(self, rest: RestClient, project: str) -> None:
        self.rest = rest
        self.project = project
        self.runs = RunCollection(rest, project)

    @classmethod
    def from_config(
        cls, project_name: str | None = None, server_url: str | None = None, user_token: str | None = None
    ) -> Self:
        """The project named, else as the CLI chooses it. Raises ConfigError when there is none."""
        given = {"DSTACK_SERVER_URL": server_url, "DSTACK_TOKEN": user_token}
        environ = os.environ | {name: value for name, value in given.items() if value is not None}
        project = resolve_project(project_name, environ=environ)
        return cls(RestClient(project.url, project.token), project.name)

    def close(self) -> None:
        """Closes the connection to the server."""
        self.rest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RunCollection:
    """The runs of a project."""

    def __init__(self, rest: RestClient, project: str) -> None:
        self._rest = rest
        self._project = project

    def get_run_plan(
        self,
        configuration: AnyRunConfiguration,
        *,
        repo: GitRepo | None = None,
        profile: Profile | None = None,
        configuration_path: str | None = None,
    ) -> RunPlan:
        """What applying the configuration would do. Uploads its files and the repository's unpushed changes."""
        spec = self._make_spec(configuration, repo, profile, configuration_path)
        plan = self._rest.runs.get_plan(self._project, dump_run_spec(spec))
        return RunPlan.model_validate(plan, extra="ignore")

    def apply_plan(self, plan: RunPlan, *, force: bool = False) -> Run:
        """Submits or updates the run. Raises InvalidRequest when the run is no longer as the plan showed it."""
        current = plan.current_resource
        document = self._rest.runs.apply(
            self._project,
            dump_run_spec(plan.run_spec),
            None if current is None else dump_current_run(current),
            force=force,
        )
        return self._wrap(document)

    def apply_configuration(
        self,
        configuration: AnyRunConfiguration,
        *,
        repo: GitRepo | None = None,
        profile: Profile | None = None,
        configuration_path: str | None = None,
    ) -> Run:
        """Plans and applies at once."""
        plan = self.get_run_plan(configuration, repo=repo, profile=profile, configuration_path=configuration_path)
        return self.apply_plan(plan)

    def list(self, *, all: bool = False, limit: int = 100) -> Sequence[Run]:
        """The active runs, or with `all` the finished ones too; the newest first, at most 100."""
        documents = self._rest.runs.list(self._project, only_active=not all, limit=limit)
        return [self._wrap(document) for document in documents]

    def get(self, run_name: str) -> Run | None:
        """The run of that name; None when there is none."""
        try:
            return self._wrap(self._rest.runs.get(self._project, name=run_name))
        except ResourceNotExists:
            return None

    def _wrap(self, document: dict[str, object]) -> Run:
        return Run(self._rest, self._project, RunModel.model_validate(document, extra="ignore"))

    def _make_spec(
        self,
        configuration: AnyRunConfiguration,
        repo: GitRepo | None,
        profile: Profile | None,
        configuration_path: str | None,
    ) -> RunSpec:
        spec = RunSpec(
            run_name=configuration.name,
            repo_id=VIRTUAL_REPO_ID,
            repo_data=VirtualRunRepoData(),
            configuration_path=configuration_path,
            configuration=configuration,
            profile=profile or Profile(name="default"),
        )
        if repo is None:
            self._rest.repos.init(self._project, VIRTUAL_REPO_ID, {"repo_type": "virtual"})
        else:
            self._attach_repo(spec, repo)
        folder = Path(configuration_path).parent if configuration_path else Path.cwd()
        spec.file_archives = upload_files(self._rest, configuration.files, folder)
        return spec

    def _attach_repo(self, spec: RunSpec, repo: GitRepo) -> None:
        info = {"repo_type": "remote", "repo_name": repo.name}
        creds = {"clone_url": repo.url, "private_key": None, "oauth_token": None}
        self._rest.repos.init(self._project, repo.id, info, creds)
        spec.repo_id = repo.id
        spec.repo_data = RemoteRunRepoData(
            repo_name=repo.name,
            repo_branch=repo.branch,
            repo_hash=repo.commit,
            repo_config_name=repo.user_name,
            repo_config_email=repo.user_email,
        )
        if repo.diff:
            spec.repo_code_hash = self._rest.repos.upload_code(self._project, repo.id, repo.diff)


class Run:
    """A run as it was last seen; `refresh` looks again."""

    def __init__(self, rest: RestClient, project: str, model: RunModel) -> None:
        self._rest = rest
        self._project = project
        self._model = model

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
    def service_url(self) -> str | None:
        """Where the service is called; None when it is none."""
        service = self._model.service
        if service is None:
            return None
        return service.url if "://" in service.url else f"{self._rest.base_url}/{service.url.lstrip('/')}"

    def refresh(self) -> None:
        """Asks the server how it is now."""
        document = self._rest.runs.get(self._project, run_id=str(self._model.id))
        self._model = RunModel.model_validate(document, extra="ignore")

    def stop(self, abort: bool = False) -> None:
        """Asks it to stop; with `abort`, without waiting for its jobs to end by themselves."""
        self._rest.runs.stop(self._project, [self.name], abort=abort)

    def wait(self) -> RunStatus:
        """Returns when it is over."""
        while not self.status.is_finished():
            time.sleep(POLL_INTERVAL)
            self.refresh()
        return self.status

    def logs(
        self, *, replica_num: int = 0, job_num: int = 0, start_time: str | None = None, diagnose: bool = False
    ) -> Iterator[bytes]:
        """What is stored of a job's log, from `start_time` (ISO 8601, exclusive) on. Raises ResourceNotExists."""
        submission_id = self._submission_id(replica_num, job_num)
        token: str | None = None
        while True:
            page = self._rest.logs.poll(
                self._project, self.name, submission_id, start_time=start_time, next_token=token, diagnose=diagnose
            )
            for entry in page["logs"]:
                yield base64.b64decode(entry["message"])
            token = page["next_token"]
            if token is None:
                return

    def _submission_id(self, replica_num: int, job_num: int) -> str:
        for job in self._model.jobs:
            is_wanted = (job.job_spec.replica_num, job.job_spec.job_num) == (replica_num, job_num)
            if is_wanted and job.job_submissions:
                return str(job.job_submissions[-1].id)
        raise ResourceNotExists(f"The run {self.name} has no replica {replica_num} with a job {job_num}")
