"""Named tokens of the user. Servers of the reference have none of these operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstack.api.rest.connection import Connection

Document = dict[str, Any]
Documents = list[Document]


class TokensApi:
    """`/api/users/tokens/*`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self) -> Documents:
        """The user's tokens, without their texts, oldest first."""
        tokens: Documents = self._connection.post("/api/users/tokens/list")
        return tokens

    def create(
        self,
        name: str,
        *,
        expires_at: str | None = None,
        projects: Sequence[str] | None = None,
        services_only: bool = False,
    ) -> Document:
        """A new token with its text, which is shown this once. `expires_at`: ISO 8601. Raises `ResourceExists`."""
        body = {
            "name": name,
            "expires_at": expires_at,
            "projects": None if projects is None else [*projects],
            "services_only": services_only,
        }
        token: Document = self._connection.post("/api/users/tokens/create", body)
        return token

    def delete(self, names: Sequence[str]) -> None:
        """Ends tokens at once. Raises `ResourceNotExists`."""
        self._connection.post("/api/users/tokens/delete", {"names": [*names]})
