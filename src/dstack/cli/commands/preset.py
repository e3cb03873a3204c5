"""`dstack preset`: good ways to serve a model, which a coding agent has found."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dstack.cli.commands.volume import add_list_arguments
from dstack.cli.completers import completes
from dstack.cli.errors import CliError
from dstack.cli.overrides import add_profile_arguments

if TYPE_CHECKING:
    from dstack.cli.context import Context
    from dstack.cli.presets.sessions import Session

ABOUT_ONE = (
    ("get", "Show a preset"),
    ("logs", "Show how the making of a preset goes"),
    ("stop", "Stop the making of a preset"),
    ("resume", "Go on with a preset that was stopped or interrupted"),
    ("export", "Write a preset as a configuration of a service"),
    ("push", "Put a preset into a registry"),
)


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    _add_list_arguments(parser, is_group=True)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    _add_list_arguments(actions.add_parser("list", help="Show presets"), is_group=False)
    create = actions.add_parser("create", help="Have a preset made; the same as apply")
    create.add_argument("-f", "--file", metavar="FILE", required=True, help="The configuration of the preset")
    create.add_argument("-n", "--name", help="The preset's name")
    create.add_argument("-y", "--yes", action="store_true", help="Do not ask")
    add_making_arguments(create)
    add_profile_arguments(create)
    one = {name: actions.add_parser(name, help=text) for name, text in ABOUT_ONE}
    for sub in one.values():
        completes(sub.add_argument("id", metavar="ID", help="Id or name of the preset"), "presets")
    one["get"].add_argument("--json", action="store_true", required=True, help="Show it as JSON")
    one["logs"].add_argument(
        "-f", "--follow", action="store_true", help="Follow it to its end, and check the outcome"
    )
    for name in ("logs", "resume"):
        one[name].add_argument("--keep-service", action="store_true", help="Leave the service running")
    one["stop"].add_argument("-y", "--yes", action="store_true", help="Do not ask")
    one["export"].add_argument("-f", "--file", metavar="FILE", required=True, help="The file to write")
    one["export"].add_argument("-n", "--name", help="The service's name (default: the preset's)")
    one["export"].add_argument("--force", action="store_true", help="Overwrite a file that is there")
    pull = actions.add_parser("pull", help="Get a preset from a registry")
    for sub in (one["push"], pull):
        sub.add_argument("reference", metavar="PROJECT/NAME", help="Its place in the registry")
    delete = actions.add_parser("delete", help="Delete presets")
    which = delete.add_mutually_exclusive_group(required=True)
    completes(which.add_argument("id", metavar="ID", nargs="?", help="Id or name of the preset"), "presets")
    _add_model_arguments(which, default=None)
    delete.add_argument("-y", "--yes", action="store_true", help="Do not ask")


def add_making_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of making a preset, for `create` and `apply` alike."""
    parser.add_argument("--keep-service", action="store_true", help="Leave the best trial's service running")
    parser.add_argument("--trials", type=int, metavar="N", help="How many ways to serve the model are measured")
    parser.add_argument("--previous", action="append", metavar="ID", help="Start from its results (repeatable)")


def _add_list_arguments(parser: argparse.ArgumentParser, *, is_group: bool) -> None:
    def default(value: bool | None) -> bool | str | None:
        return value if is_group else argparse.SUPPRESS

    add_list_arguments(parser, default=False if is_group else argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", default=default(False), help="Show them as JSON")
    parser.add_argument(
        "-a", "--all", action="store_true", default=default(False), help="Finished ones too, not the last one only"
    )
    parser.add_argument(
        "-n", "--last", type=int, metavar="N", default=default(None), help="The last N; implies -a"
    )
    _add_model_arguments(parser.add_mutually_exclusive_group(), default=default(None))


def _add_model_arguments(group: argparse._MutuallyExclusiveGroup, default: bool | str | None) -> None:
    group.add_argument("--base", metavar="MODEL", default=default, help="Those for variants of this model")
    group.add_argument("--repo", metavar="REPO", default=default, help="Those that serve this repository")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.action == "create":
        return _create(args)
    if args.action in ("push", "pull"):
        return _refuse_registry(args)
    if args.action in ("logs", "stop", "resume"):
        return {"logs": _logs, "stop": _stop, "resume": _resume}[args.action](args)
    {"get": _get, "export": _export, "delete": _delete}.get(args.action, _list)(args)
    return 0


def _create(args: argparse.Namespace) -> int:
    from dstack.cli.applying.presets import apply_preset
    from dstack.cli.context import connect
    from dstack.cli.files import load_configuration

    file = load_configuration(args.file)
    kind = getattr(file.configuration, "type", "")
    if kind != "preset":
        raise CliError(f"{args.file} is the configuration of a {kind}: `dstack apply -f {args.file}` applies it")
    args.detach = False
    return apply_preset(connect(args), file, args)


def _refuse_registry(args: argparse.Namespace) -> int:
    """Raises CliError: there is none."""
    project, slash, name = args.reference.partition("/")
    if not (project and slash and name) or "/" in name:
        raise CliError(f"{args.reference!r} is no place in a registry: write PROJECT/NAME")
    raise CliError(
        "There is no registry of presets: servers keep none. `dstack preset export ID -f FILE` writes the "
        "configuration of a preset's service, to be shared as any file"
    )


def _list(args: argparse.Namespace) -> None:
    from dstack.cli.output.live import show
    from dstack.cli.output.presets import preset_headers, preset_row
    from dstack.cli.output.tables import print_table
    from dstack.cli.output.values import now_utc

    if args.json:
        print(json.dumps({"presets": [session.document() for session in _listed(args)]}, indent=2))
        return
    headers = preset_headers(verbose=args.verbose)

    def draw() -> None:
        sessions = _listed(args)
        print_table(headers, [preset_row(each, headers, now_utc(), verbose=args.verbose) for each in sessions])

    show(draw, watch=args.watch)


def _listed(args: argparse.Namespace) -> list[Session]:
    """Unfinished ones, else the last one, unless more are asked for."""
    from dstack.cli.presets.sessions import INTERRUPTED, RUNNING

    sessions = _of_model(args)
    if args.last is not None:
        return sessions[: args.last]
    if args.all:
        return sessions
    return [each for each in sessions if each.shown_status() in (RUNNING, INTERRUPTED)] or sessions[:1]


def _of_model(args: argparse.Namespace) -> list[Session]:
    from dstack.cli.presets.sessions import iter_sessions

    wanted = args.base or args.repo
    sessions = list(iter_sessions())
    if wanted is None:
        return sessions
    key = "base" if args.base else "repo"
    return [session for session in sessions if session.configuration["model"].get(key) == wanted]


def _get(args: argparse.Namespace) -> None:
    print(json.dumps(_find(args).document(), indent=2))


def _find(args: argparse.Namespace) -> Session:
    from dstack.cli.presets.sessions import find_session

    return find_session(args.id)


def _connect(args: argparse.Namespace, session: Session) -> Context:
    """To the project in which the preset is made, unless another one is named."""
    from dstack.cli.context import connect

    args.project = args.project or session.project
    return connect(args)


def _logs(args: argparse.Namespace) -> int:
    from dstack.cli.applying.presets import follow_to_end
    from dstack.cli.presets.making import format_entry
    from dstack.cli.presets.sessions import RUNNING

    session = _find(args)
    if args.follow and session.status == RUNNING:
        session.keep_service = session.keep_service or args.keep_service
        return follow_to_end(_connect(args, session), session, None)
    for entry in session.progress():
        print(format_entry(entry))
    if session.error:
        print(f"The preset {session.id} {session.status}: {session.error}")
    return 0


def _stop(args: argparse.Namespace) -> int:
    from dstack.cli.output.prompts import confirm
    from dstack.cli.presets.making import stop_agent, stop_runs
    from dstack.cli.presets.sessions import RUNNING

    session = _find(args)
    if session.status != RUNNING:
        raise CliError(f"The preset {session.id} is not being made: it is {session.status}")
    if args.yes or confirm(f"Stop making the preset {session.id}, and its runs?"):
        context = _connect(args, session)
        stop_agent(session)
        stop_runs(context, session)
        print(f"Stopped; `dstack preset resume {session.id}` goes on.")
    return 0


def _resume(args: argparse.Namespace) -> int:
    from dstack.cli.applying.presets import follow_to_end
    from dstack.cli.presets.making import resume

    session = _find(args)
    session.keep_service = session.keep_service or args.keep_service
    context = _connect(args, session)
    return follow_to_end(context, session, resume(context, session))


def _export(args: argparse.Namespace) -> None:
    import yaml

    from dstack.cli.presets.sessions import DONE

    session = _find(args)
    if session.status != DONE or session.report is None:
        raise CliError(f"The preset {session.id} is {session.shown_status()}: only one that is done has a service")
    target = Path(args.file)
    if target.exists() and not args.force:
        raise CliError(f"{target} is there: pass --force to overwrite it")
    service = yaml.safe_load(session.report["service"])
    named = {"type": "service", "name": args.name or session.name}
    text = yaml.safe_dump(
        named | {key: value for key, value in service.items() if key not in named}, sort_keys=False
    )
    try:
        target.write_text(text)
    except OSError as error:
        raise CliError(f"{target} cannot be written: {error.strerror}") from error
    print(f"Wrote {target}.")


def _delete(args: argparse.Namespace) -> None:
    from dstack.cli.output.prompts import confirm
    from dstack.cli.presets.sessions import delete_session

    sessions = [_find(args)] if args.id else _of_model(args)
    if not sessions:
        print("There is no such preset.")
        return
    names = ", ".join(f"{session.name} ({session.id})" for session in sessions)
    if args.yes or confirm(f"Delete {names}?"):
        for session in sessions:
            delete_session(session)
        print(f"Deleted {names}.")
