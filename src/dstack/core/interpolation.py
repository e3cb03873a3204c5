"""`${{ namespace.name }}` in texts of a configuration; `$$` stands for one dollar."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

_TOKEN = re.compile(r"\$\$|\$\{\{(?P<inside>.*?)\}\}|\$\{\{", re.DOTALL)
_REFERENCE = re.compile(r"\s*([A-Za-z_]\w*)\.([A-Za-z_]\w*)\s*", re.ASCII)


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
    reference = _REFERENCE.fullmatch(inside)
    if reference is None:
        raise InterpolationError(f"{match.group()} is not a reference: write it like ${{{{ secrets.name }}}}")
    return reference.group(1), reference.group(2)
