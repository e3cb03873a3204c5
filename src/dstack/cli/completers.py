"""Names that the shell completes: asked from the server while the user types.

A completer says nothing when it fails: there is nowhere to say it while a line is being typed.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dstack.cli.context import Context

Completer = Callable[..., Iterable[str]]


def completes(action: argparse.Action, what: str) -> argparse.Action:
    """Has the shell complete the argument with names of `what`, a key of `NAMES`."""
    action.completer = _completer(what)  # type: ignore[attr-defined]  # which argcomplete looks for
    return action


def _completer(what: str) -> Completer:
    def complete(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        try:
            with contextlib.ExitStack() as parsed_args.open_connections:
                return [name for name in NAMES[what](parsed_args) if name.startswith(prefix)]
        except Exception:  # noqa: BLE001 - see the module
            return []

    return complete


def _of_project(listing: Callable[[Context], Iterable[str]]) -> Callable[[argparse.Namespace], Iterable[str]]:
    def names(args: argparse.Namespace) -> Iterable[str]:
        from dstack.cli.context import connect

        return listing(connect(args))

    return names


def _named(group: str, key: str = "name") -> Callable[[argparse.Namespace], Iterable[str]]:
    return _of_project(lambda at: [str(item[key]) for item in getattr(at.rest, group).list(at.project)])


def _runs(at: Context) -> Iterable[str]:
    return [run["run_spec"]["run_name"] for run in at.rest.runs.list(at.project)]


def _imports(at: Context) -> Iterable[str]:
    exports = [item["export"] for item in at.rest.imports.list(at.project)]
    return [f"{export['project_name']}/{export['name']}" for export in exports]


def _projects(_: argparse.Namespace) -> Iterable[str]:
    from dstack.api.config import ConfigFile

    return [project.name for project in ConfigFile().projects]


def _tokens(at: Context) -> Iterable[str]:
    return [str(token["name"]) for token in at.rest.tokens.list()]


def _presets(_: argparse.Namespace) -> Iterable[str]:
    from dstack.cli.presets.sessions import iter_sessions

    return [name for session in iter_sessions() for name in (session.id, session.name)]


NAMES: dict[str, Callable[[argparse.Namespace], Iterable[str]]] = {
    "runs": _of_project(_runs),
    "fleets": _named("fleets"),
    "volumes": _named("volumes"),
    "gateways": _named("gateways"),
    "secrets": _named("secrets"),
    "exports": _named("exports"),
    "imports": _of_project(_imports),
    "tokens": _of_project(_tokens),
    "projects": _projects,
    "presets": _presets,
}
"""What can be completed, and how its names are found."""
