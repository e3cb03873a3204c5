"""The Git repository that a run is made from: known to the project, and what is not pushed uploaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from dstack.api.git import GitRepo, is_url, read_repo
from dstack.cli.context import Context
from dstack.cli.errors import CliError
from dstack.cli.files import ConfigurationFile
from dstack.core.configurations.mounts import RepoSpec
from dstack.core.repos import VIRTUAL_REPO_ID, RemoteRunRepoData
from dstack.core.runs import RunSpec


def add_repo_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags about the repository."""
    group = parser.add_argument_group("Repository")
    which = group.add_mutually_exclusive_group()
    which.add_argument("-P", "--repo", metavar="REPO", help="A local path or a Git URL")
    which.add_argument("--no-repo", action="store_true", help="Use none, whatever the configuration says")
    group.add_argument("--repo-branch", metavar="NAME", help="Of a Git URL: the branch")
    group.add_argument("--repo-hash", metavar="HASH", help="Of a Git URL: the commit")
    add_credential_arguments(group)


def add_credential_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds the flags that say how to clone a repository."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-t", "--token", metavar="TOKEN", help="Clone with this token")
    how.add_argument("--git-identity", metavar="PATH", help="Clone with this private SSH key")


def attach_repo(context: Context, spec: RunSpec, file: ConfigurationFile, args: argparse.Namespace) -> None:
    """Makes the run start from the repository of the flags or of the configuration, if there is one."""
    wanted = _wanted(spec, args)
    if wanted is None:
        context.rest.repos.init(context.project, VIRTUAL_REPO_ID, {"repo_type": "virtual"})
        return
    repo = _load(wanted, file.folder)
    init_repo(context, repo, args)
    spec.repo_id = repo.id
    spec.repo_dir = wanted.path
    spec.repo_data = RemoteRunRepoData(
        repo_name=repo.name,
        repo_branch=repo.branch,
        repo_hash=repo.commit,
        repo_config_name=repo.user_name,
        repo_config_email=repo.user_email,
    )
    if repo.diff:
        spec.repo_code_hash = context.rest.repos.upload_code(context.project, repo.id, repo.diff)


def init_repo(context: Context, repo: GitRepo, args: argparse.Namespace) -> None:
    """Makes the repository known to the project, with the credentials of the flags."""
    creds = {"clone_url": repo.url, "private_key": _read_identity(args.git_identity), "oauth_token": args.token}
    info = {"repo_type": "remote", "repo_name": repo.name}
    context.rest.repos.init(context.project, repo.id, info, creds)


def _wanted(spec: RunSpec, args: argparse.Namespace) -> RepoSpec | None:
    if args.no_repo:
        return None
    configured = spec.configuration.repos
    if args.repo is None:
        return configured[0] if configured else None
    place = {"url": args.repo} if is_url(args.repo) else {"local_path": str(Path(args.repo).absolute())}
    inside = {"path": configured[0].path} if configured else {}
    return RepoSpec.model_validate(place | inside | {"branch": args.repo_branch, "hash": args.repo_hash})


def _load(wanted: RepoSpec, folder: Path) -> GitRepo:
    if wanted.url is not None:
        return GitRepo(wanted.url, branch=wanted.branch, commit=wanted.hash)
    return read_repo(folder / Path(wanted.local_path or ".").expanduser())


def _read_identity(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"The private key {path} cannot be read: {error}") from error
