"""Which clients we talk to: the header `X-API-VERSION` against our level of compatibility."""

from __future__ import annotations

import re
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from dstack import COMPATIBILITY_LEVEL
from dstack.server.api.answers import plain

HEADER = "x-api-version"


class Version(NamedTuple):
    """Release numbers; what follows them (`rc1`, `.dev0`) does not matter here."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


_PATTERN = re.compile(
    r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:\.\d+)*(?:[-_.]?(?:a|b|c|rc|alpha|beta|pre|preview)[-_.]?\d*)?"
    r"(?:[-_.]?(?:post|rev|r)[-_.]?\d*)?(?:[-_.]?dev[-_.]?\d*)?(?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?",
    re.IGNORECASE,
)


class BadVersion(Exception):
    """Not a version number."""


def parse(text: str) -> Version | None:
    """None for what asks for the newest shapes: `latest` and development versions `0.0.0*`."""
    if text == "latest":
        return None
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise BadVersion(text)
    version = Version(*(int(part or 0) for part in match.groups()))
    return None if version == (0, 0, 0) else version


_parsed_level = parse(COMPATIBILITY_LEVEL)
assert _parsed_level is not None
OUR_LEVEL: Version = _parsed_level


class VersionCheck:
    """Middleware: refuses clients that are newer than us by a minor version before anything else is looked at.

    Leaves the client's version (or None) in the scope's state as `client_version`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        text = Headers(scope=scope).get(HEADER)
        try:
            version = parse(text) if text is not None else None
        except BadVersion:
            message = f"Invalid version in the header X-API-VERSION: {text!r}; expected one like {OUR_LEVEL}"
            await plain({"detail": [{"msg": message, "code": None}]}, 400)(scope, receive, send)
            return
        if version is not None and version[:2] > OUR_LEVEL[:2]:
            message = (
                f"The client's version {version} is newer than the server's {OUR_LEVEL}; "
                "update the server or use an older client"
            )
            await plain({"detail": [{"msg": message, "code": "error"}]}, 400)(scope, receive, send)
            return
        scope.setdefault("state", {})["client_version"] = version
        await self._app(scope, receive, send)


def client_is_older(request: Request, level: tuple[int, int, int]) -> bool:
    """Whether the client says that it is older; one without a version is the newest."""
    version: Version | None = getattr(request.state, "client_version", None)
    return version is not None and version < level
