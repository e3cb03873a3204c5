"""`dstack login`: the projects of a server that knows its users from somebody else, by way of the browser."""

from __future__ import annotations

import argparse
import webbrowser
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

from dstack.api.config import ConfigFile, Project
from dstack.api.rest.client import RestClient
from dstack.cli.errors import CliError
from dstack.cli.output.prompts import confirm

CALLBACK = "/auth/callback"
DONE = b"<!doctype html><title>dstack</title><p>You are logged in. You may close this page."


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--url", required=True, help="The server's URL")
    parser.add_argument("-p", "--provider", metavar="NAME", help="Who vouches for you (default: the only one)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-y", "--yes", action="store_true", help="Make the first project the default one")
    group.add_argument("-n", "--no", action="store_true", help="Leave the default project as it is")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    with RestClient(args.url, None) as rest:
        provider = _choose(rest, args.provider)
        token = _prove(rest, provider)
    with RestClient(args.url, token) as rest:
        projects = rest.projects.list(include_not_joined=False)
    _write(args, [project["project_name"] for project in projects], token)
    return 0


def _choose(rest: RestClient, wanted: str | None) -> str:
    names = [one["name"] for one in rest.auth.list_providers() if one["enabled"]]
    if not names:
        raise CliError(
            f"{rest.base_url} has nobody to log in with: ask for a token, and use it with `dstack project add`"
        )
    if wanted in names or (wanted is None and len(names) == 1):
        return wanted or str(names[0])
    what = "There are several to log in with" if wanted is None else f"There is no {wanted!r} to log in with"
    raise CliError(f"{what}: choose one with --provider, of {', '.join(names)}")


def _prove(rest: RestClient, provider: str) -> str:
    """The token of whom the browser comes back as."""
    with _CallbackServer() as server:
        url = rest.auth.authorize(provider, server.server_port)
        print(f"Log in here: {url}", flush=True)
        webbrowser.open(url)
        while server.found is None:
            server.handle_request()
    code, state = server.found
    return str(rest.auth.callback(provider, code, state)["creds"]["token"])


class _CallbackServer(HTTPServer):
    """Waits on this machine for the browser."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Callback)
        self.found: tuple[str, str] | None = None
        """The code and the state that the provider gave."""


class _Callback(BaseHTTPRequestHandler):
    server: _CallbackServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if parts.path != CALLBACK or not {"code", "state"} <= query.keys():
            self.send_error(404)
            return
        self.server.found = query["code"][0], query["state"][0]
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(DONE)))
        self.end_headers()
        self.wfile.write(DONE)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal is for the user."""


def _write(args: argparse.Namespace, names: list[str], token: str) -> None:
    if not names:
        print("You are logged in, but in no project yet: ask to be added to one.")
        return
    file = ConfigFile()
    current = file.find_default()
    for name in names:
        known = file.find(name)
        file.put(Project(name, args.url.rstrip("/"), token, default=known is not None and known.default))
    if current is None or (not args.no and current.name not in names and _agrees(args, names[0], current.name)):
        file.set_default(names[0])
    file.save()
    print(f"On file: {', '.join(names)}.")


def _agrees(args: argparse.Namespace, name: str, current: str) -> bool:
    return bool(args.yes) or confirm(f"Make {name} the default project instead of {current}?")
