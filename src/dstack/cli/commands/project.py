"""`dstack project`: the projects on file, in `~/.dstack/config.yml`."""

from __future__ import annotations

import argparse

from dstack.api.config import ConfigFile, Project
from dstack.api.rest.client import RestClient
from dstack.cli.completers import completes
from dstack.cli.errors import CliError
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_table
from dstack.core.errors import DstackError


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("-v", "--verbose", action="store_true", help="Show the users too")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="Show the projects on file")
    listing.add_argument(
        "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="Show the users too"
    )
    _register_add(actions.add_parser("add", help="Add or change a project"))
    delete = actions.add_parser("delete", help="Forget a project")
    completes(delete.add_argument("--name", required=True, help="The project"), "projects")
    delete.add_argument("-y", "--yes", action="store_true", help="Do not ask")
    default = actions.add_parser("set-default", help="Choose the default project")
    completes(default.add_argument("name", metavar="NAME", help="The project"), "projects")


def _register_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="The project")
    parser.add_argument("--url", required=True, help="The server's URL")
    parser.add_argument("--token", required=True, help="Your token")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-y", "--yes", action="store_true", help="Make it the default project")
    group.add_argument("-n", "--no", action="store_true", help="Do not make it the default project")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    actions = {"add": _add, "delete": _delete, "set-default": _set_default}
    actions.get(args.action, _list)(args)
    return 0


def _add(args: argparse.Namespace) -> None:
    with RestClient(args.url, args.token) as rest:
        rest.projects.get(args.name)
    file = ConfigFile()
    project = Project(args.name, args.url.rstrip("/"), args.token)
    project.default = _becomes_default(file, args)
    file.put(project)
    file.save()
    print(f"Project {project.name} is on file{' as the default project' if project.default else ''}.")


def _becomes_default(file: ConfigFile, args: argparse.Namespace) -> bool:
    current = file.find_default()
    if current is None or current.name == args.name:
        return True
    if args.yes or args.no:
        return bool(args.yes)
    return confirm(f"Make {args.name} the default project instead of {current.name}?")


def _delete(args: argparse.Namespace) -> None:
    file = ConfigFile()
    if file.find(args.name) is None:
        print(f"There is no project {args.name} on file.")
        return
    if not (args.yes or confirm(f"Forget the project {args.name} and its token?")):
        return
    file.remove(args.name)
    file.save()
    print(f"Project {args.name} is no longer on file.")


def _set_default(args: argparse.Namespace) -> None:
    file = ConfigFile()
    if file.find(args.name) is None:
        raise CliError(f"There is no project {args.name!r} on file: see `dstack project list`")
    file.set_default(args.name)
    file.save()
    print(f"{args.name} is now the default project.")


def _list(args: argparse.Namespace) -> None:
    headers = ["PROJECT", "URL", *(["USER"] if args.verbose else []), "DEFAULT"]
    rows = []
    for project in ConfigFile().projects:
        user = [_username(project)] if args.verbose else []
        rows.append([project.name, project.url, *user, "✓" if project.default else ""])
    print_table(headers, rows, keep=("PROJECT",))


def _username(project: Project) -> str:
    try:
        with RestClient(project.url, project.token) as rest:
            return str(rest.users.get_my_user()["username"])
    except DstackError as error:
        return f"({error})"
