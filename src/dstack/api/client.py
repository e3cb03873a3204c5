"""The Python API: `Client` for programs that run workloads. Heavy to import; the CLI does without it.

client = Client.from_config()
run = client.runs.apply_configuration(TaskConfiguration(commands=["echo hello"]))
run.wait()
for chunk in run.logs():
    sys.stdout.buffer.write(chunk)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from dstack.api.archives import upload_files
from dstack.api.attach import reserve_ports
from dstack.api.config import resolve_project
from dstack.api.git import GitRepo, read_repo
from dstack.api.rest.client import RestClient
from dstack.api.run import Run
from dstack.api.ssh.ports import ReservedPorts
from dstack.api.wire import dump_current_run, dump_run_spec
from dstack.core.configurations import AnyRunConfiguration
from dstack.core.configurations.profiles import Profile
from dstack.core.errors import ResourceNotExists
from dstack.core.repos import VIRTUAL_REPO_ID, RemoteRunRepoData, VirtualRunRepoData
from dstack.core.runs import Run as RunModel
from dstack.core.runs import RunPlan, RunSpec


class Client:
    """A project of a server. Not for use by several threads at once; open one each."""

    def __init__(self, rest: RestClient, project: str) -> None:
        self.rest = rest
        self.project = project
        self.runs = RunCollection(rest, project)
        self.repos = RepoCollection(rest, project)

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
        repo: GitRepo | None = None,
        profile: Profile | None = None,
        configuration_path: str | None = None,
    ) -> RunPlan:
        """What applying the configuration would do. Uploads its files and the repository's unpushed changes."""
        spec = self._make_spec(configuration, repo, profile, configuration_path)
        plan = self._rest.runs.get_plan(self._project, dump_run_spec(spec))
        return RunPlan.model_validate(plan, extra="ignore")

    def apply_plan(
        self, plan: RunPlan, repo: GitRepo | None = None, reserve_ports: bool = True, *, force: bool = False
    ) -> Run:
        """Submits or updates the run. Raises InvalidRequest when the run is no longer as the plan showed it.

        `reserve_ports`: takes the local ports of `ports` beforehand, for `Run.attach`; raises AttachError when one
        is in use. `repo` is the one that was planned with.
        """
        ports = _reserve(plan, self._rest.base_url) if reserve_ports else None
        current = plan.current_resource
        try:
            document = self._rest.runs.apply(
                self._project,
                dump_run_spec(plan.run_spec),
                None if current is None else dump_current_run(current),
                force=force,
            )
        except BaseException:
            if ports is not None:
                ports.release()
            raise
        return self._wrap(document, ports)

    def apply_configuration(
        self,
        configuration: AnyRunConfiguration,
        repo: GitRepo | None = None,
        profile: Profile | None = None,
        configuration_path: str | None = None,
        reserve_ports: bool = True,
    ) -> Run:
        """Plans and applies at once."""
        plan = self.get_run_plan(configuration, repo, profile, configuration_path)
        return self.apply_plan(plan, repo, reserve_ports)

    submit = apply_configuration
    """The older name."""

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

    def _wrap(self, document: dict[str, object], ports: ReservedPorts | None = None) -> Run:
        return Run(self._rest, self._project, RunModel.model_validate(document, extra="ignore"), ports)

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
        RepoCollection(self._rest, self._project).init(repo)
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


class RepoCollection:
    """The Git repositories that a project knows."""

    def __init__(self, rest: RestClient, project: str) -> None:
        self._rest = rest
        self._project = project

    def load(self, repo_dir: str | Path) -> GitRepo:
        """The repository of a folder of this machine. Raises ConfigError when there is none."""
        return read_repo(Path(repo_dir).expanduser())

    def init(
        self, repo: GitRepo, git_identity_file: str | Path | None = None, oauth_token: str | None = None
    ) -> None:
        """Makes the repository known to the project, with the credentials that hosts clone it with."""
        key = None
        if git_identity_file is not None:
            key = Path(git_identity_file).expanduser().read_text(encoding="utf-8")
        info = {"repo_type": "remote", "repo_name": repo.name}
        creds = {"clone_url": repo.url, "private_key": key, "oauth_token": oauth_token}
        self._rest.repos.init(self._project, repo.id, info, creds)


def _reserve(plan: RunPlan, server_url: str) -> ReservedPorts:
    return reserve_ports(plan.model_dump(mode="json"), None, server_url)
