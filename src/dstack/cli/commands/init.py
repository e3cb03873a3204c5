"""`dstack init`: makes a Git repository known to the project, with the credentials to clone it."""

from __future__ import annotations

import argparse
from pathlib import Path

from dstack.cli.context import connect


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "-P", "--repo", metavar="REPO", help="A local path or a Git URL (default: the current folder)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-t", "--token", metavar="TOKEN", help="Clone with this token")
    how.add_argument("--git-identity", metavar="PATH", help="Clone with this private SSH key")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from dstack.api.git import GitRepo, is_url, read_repo
    from dstack.cli.applying.repos import init_repo

    is_remote = args.repo is not None and is_url(args.repo)
    repo = GitRepo(args.repo) if is_remote else read_repo(Path(args.repo or "."))
    context = connect(args)
    init_repo(context, repo, args)
    print(f"The repository {repo.name} is known to the project {context.project}.")
    return 0
