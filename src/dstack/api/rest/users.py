"""Users, their public keys, and how they log in: `/api/users/*` and `/api/auth/*`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstack.api.rest.connection import Connection

Document = dict[str, Any]
Documents = list[Document]


class UsersApi:
    """`/api/users/*`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get_my_user(self) -> Document:
        """The user whose token is used."""
        user: Document = self._connection.post("/api/users/get_my_user")
        return user

    def list(self, **fields: Any) -> Documents:
        """A page of users; the fields are those of the call, such as `limit` and `prev_id`."""
        users: Documents = self._connection.post("/api/users/list", fields or None)
        return users

    def get(self, username: str) -> Document:
        """A user with their token. Raises `ResourceNotExists`."""
        user: Document = self._connection.post("/api/users/get_user", {"username": username})
        return user

    def create(
        self, username: str, global_role: str, *, email: str | None = None, active: bool = True
    ) -> Document:
        """A new user, `admin` or `user` of the server. Raises `ResourceExists`."""
        body = {"username": username, "global_role": global_role, "email": email, "active": active}
        user: Document = self._connection.post("/api/users/create", body)
        return user

    def update(
        self, username: str, global_role: str, *, email: str | None = None, active: bool = True
    ) -> Document:
        """Sets all of these of a user. Raises `ResourceNotExists`."""
        body = {"username": username, "global_role": global_role, "email": email, "active": active}
        user: Document = self._connection.post("/api/users/update", body)
        return user

    def refresh_token(self, username: str) -> Document:
        """Gives a user another token; the old one ends at once."""
        user: Document = self._connection.post("/api/users/refresh_token", {"username": username})
        return user

    def refresh_ssh_key(self, username: str) -> Document:
        """Gives a user another pair of SSH keys."""
        user: Document = self._connection.post("/api/users/refresh_ssh_key", {"username": username})
        return user

    def delete(self, usernames: Sequence[str]) -> None:
        """Removes users."""
        self._connection.post("/api/users/delete", {"users": [*usernames]})


class PublicKeysApi:
    """`/api/users/public_keys/*`: keys with which the user opens jobs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self) -> Documents:
        """The user's keys."""
        keys: Documents = self._connection.post("/api/users/public_keys/list")
        return keys

    def add(self, key: str, *, name: str | None = None) -> Document:
        """Adds a key in OpenSSH's form. Raises `ResourceExists`."""
        body = {"key": key} if name is None else {"key": key, "name": name}
        added: Document = self._connection.post("/api/users/public_keys/add", body)
        return added

    def delete(self, ids: Sequence[str]) -> None:
        """Removes keys. Raises `ResourceNotExists`."""
        self._connection.post("/api/users/public_keys/delete", {"ids": [*ids]})


class AuthApi:
    """`/api/auth/*`: logging in by way of a provider. A server without providers has the first two calls only."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list_providers(self) -> Documents:
        """Who may vouch for users: `name`, `enabled`."""
        providers: Documents = self._connection.post("/api/auth/list_providers")
        return providers

    def get_next_redirect(self, code: str, state: str) -> Document:
        """Where a browser that comes back from a provider goes on."""
        body = {"code": code, "state": state}
        answer: Document = self._connection.post("/api/auth/get_next_redirect", body)
        return answer

    def authorize(self, provider: str, local_port: int) -> str:
        """The URL at which the user proves to the provider who they are; the browser then calls the local port."""
        answer = self._connection.post(f"/api/auth/{provider}/authorize", {"local_port": local_port})
        return str(answer["authorization_url"])

    def callback(self, provider: str, code: str, state: str) -> Document:
        """The user, with their token, for what the provider gave the browser."""
        user: Document = self._connection.post(f"/api/auth/{provider}/callback", {"code": code, "state": state})
        return user
