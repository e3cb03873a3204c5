"""`${{ namespace.name }}` in texts of a configuration; `$$` stands for one dollar.

Commands of a task with groups may also name a node: `${{ groups[0].nodes[1].IP_ADDRESS }}`, or `groups[name]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

_TOKEN = re.compile(r"\$\$|\$\{\{(?P<inside>.*?)\}\}|\$\{\{", re.DOTALL)
_REFERENCE = re.compile(r"\s*([A-Za-z_]\w*)\.([A-Za-z_]\w*)\s*", re.ASCII)


_NODE = re.compile(r"\s*groups\[([\w-]+)\]\.nodes\[(\d+)\]\.IP_ADDRESS\s*", re.ASCII)
_IN_COMMANDS = re.compile(r"\$\$\{\{|\$\{\{(?P<inside>.*?)\}\}", re.DOTALL)
GROUPS = "groups"
"""Namespace of the references to nodes; the name of one is `group.number`."""


class InterpolationError(ValueError):
    """A reference is malformed or names something that does not exist."""


def interpolate(
    text: str, values: Mapping[str, Mapping[str, str]], *, keep_unknown_namespaces: bool = False
) -> str:
    """The text with `${{ namespace.name }}` replaced by `values[namespace][name]`.

    With `keep_unknown_namespaces`, references to namespaces that somebody else fills in later stay, and so do all
    `$$`, which the last one to fill in turns into dollars.
    """

    def replace(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$$" if keep_unknown_namespaces else "$"
        namespace, name = _parse(match)
        if namespace not in values:
            if keep_unknown_namespaces:
                return match.group()
            raise InterpolationError(f"{match.group()} refers to {namespace!r}, which is not known here")
        if name not in values[namespace]:
            raise InterpolationError(f"{match.group()} is not set: there is no {name!r} in {namespace!r}")
        return values[namespace][name]

    return _substitute(replace, text)


def fill_nodes(text: str, addresses: Mapping[str, str]) -> str:
    """The text of commands with `${{ groups[group].nodes[number].IP_ADDRESS }}` replaced; `addresses` are by
    `group.number`. In commands a shell reads `$$`, so of it only `$${{` is turned into `${{`. Raises
    InterpolationError."""

    def replace(match: re.Match[str]) -> str:
        inside = match.group("inside")
        if inside is None:
            return "${{"
        node = _NODE.fullmatch(inside)
        if node is None:
            return match.group()
        name = f"{node.group(1)}.{node.group(2)}"
        if name not in addresses:
            raise InterpolationError(f"{match.group()}: there is no such node; there are {_listed(addresses)}")
        return addresses[name]

    return _IN_COMMANDS.sub(replace, text)


def _listed(addresses: Mapping[str, str]) -> str:
    nodes = (name.rpartition(".") for name in addresses)
    return ", ".join(f"groups[{group}].nodes[{number}]" for group, _, number in nodes) or "none"


def references(text: str) -> Iterator[tuple[str, str]]:
    """The (namespace, name) pairs that the text refers to, in order."""
    for match in _TOKEN.finditer(text):
        if match.group() != "$$":
            yield _parse(match)


def _substitute(replace: Callable[[re.Match[str]], str], text: str) -> str:
    return _TOKEN.sub(replace, text)


def _parse(match: re.Match[str]) -> tuple[str, str]:
    inside = match.group("inside")
    if inside is None:
        raise InterpolationError("'${{' is not closed by '}}'; write '$${{' for the text itself")
    node = _NODE.fullmatch(inside)
    if node is not None:
        return GROUPS, f"{node.group(1)}.{node.group(2)}"
    reference = _REFERENCE.fullmatch(inside)
    if reference is None:
        raise InterpolationError(f"{match.group()} is not a reference: write it like ${{{{ secrets.name }}}}")
    return reference.group(1), reference.group(2)
