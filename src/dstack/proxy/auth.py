"""Who may use the services of a project."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol


class ProxyAuth(Protocol):
    def is_allowed(self, project: str, token: str, address: str) -> bool | Awaitable[bool]:
        """Whether the token's owner may use the project's services. At once where known, else to be awaited.

        `address` is the client's; awaiting raises `TooManyAttempts` when it has shown too many unknown tokens.
        """
        ...


def bearer_token(authorization: bytes | None) -> str | None:
    """The token of an `Authorization: Bearer` value; None where there is none."""
    if authorization is None or authorization[:7].lower() != b"bearer ":
        return None
    token = authorization[7:].strip(b" ")
    return token.decode("ascii") if token and token.isascii() else None
