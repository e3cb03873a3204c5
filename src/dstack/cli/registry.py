"""The commands: their names, modules and one-line helps, so that `dstack --help` imports none of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command; its module has `register(parser)` and `run(args) -> int`."""

    name: str
    module: str
    help: str
    aliases: tuple[str, ...] = ()
    has_project: bool = True
    """Whether `--project` may be given."""


COMMANDS = (
    Command("apply", "dstack.cli.commands.apply", "Apply a configuration"),
    Command("attach", "dstack.cli.commands.attach", "Open a running job to this machine: ports, shell, log"),
    Command("completion", "dstack.cli.commands.completion", "Print a shell completion script", has_project=False),
    Command("delete", "dstack.cli.commands.delete", "Delete what a configuration made", aliases=("destroy",)),
    Command("event", "dstack.cli.commands.event", "Show what happened"),
    Command("export", "dstack.cli.commands.export", "Share fleets and gateways with other projects"),
    Command("fleet", "dstack.cli.commands.fleet", "Show and delete fleets"),
    Command("gateway", "dstack.cli.commands.gateway", "Show, change and delete gateways"),
    Command("import", "dstack.cli.commands.imports", "Show what other projects share with this one"),
    Command("init", "dstack.cli.commands.init", "Make a Git repository known to the project"),
    Command("login", "dstack.cli.commands.login", "Log in to a server in the browser", has_project=False),
    Command("logs", "dstack.cli.commands.logs", "Show the logs of a run"),
    Command("metrics", "dstack.cli.commands.metrics", "Show what the jobs of a run use"),
    Command("offer", "dstack.cli.commands.offer", "Show what compute is on offer"),
    Command("preset", "dstack.cli.commands.preset", "Have a good way to serve a model found, and keep it"),
    Command("project", "dstack.cli.commands.project", "Manage the projects on file", has_project=False),
    Command("ps", "dstack.cli.commands.ps", "Show runs"),
    Command("run", "dstack.cli.commands.run", "Show a run as JSON"),
    Command("secret", "dstack.cli.commands.secret", "Manage secrets"),
    Command("server", "dstack.cli.commands.server", "Start a server", has_project=False),
    Command("stop", "dstack.cli.commands.stop", "Stop a run"),
    Command("token", "dstack.cli.commands.token", "Manage your named tokens"),
    Command("volume", "dstack.cli.commands.volume", "Show and delete volumes"),
)


def find_command(name: str) -> Command | None:
    """The command of that name or alias."""
    return next((command for command in COMMANDS if name == command.name or name in command.aliases), None)
