"""IDEs that dev environments can be opened in."""

from __future__ import annotations

from typing import NamedTuple


class Ide(NamedTuple):
    name: str
    url: str
    """With `{host}` (an alias of `ssh`, or `user@name:port`) and `{folder}`, which starts with a slash."""


IDES = {
    "vscode": Ide("VS Code", "vscode://vscode-remote/ssh-remote+{host}{folder}"),
    "cursor": Ide("Cursor", "cursor://vscode-remote/ssh-remote+{host}{folder}"),
    "windsurf": Ide("Windsurf", "windsurf://vscode-remote/ssh-remote+{host}{folder}"),
    "zed": Ide("Zed", "zed://ssh/{host}{folder}"),
}
