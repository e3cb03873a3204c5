"""Code and files: `/api/project/{project}/repos/*` and `/api/files/*`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from dstack.api.rest.connection import Connection

Document = dict[str, Any]
Documents = list[Document]


class ReposApi:
    """Calls about the repositories of a project."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def init(self, project: str, repo_id: str, repo_info: Document, repo_creds: Document | None = None) -> None:
        """Makes a repository known to the project and stores the caller's credentials for it."""
        body = {"repo_id": repo_id, "repo_info": repo_info, "repo_creds": repo_creds}
        self._connection.post(f"/api/project/{project}/repos/init", body)

    def get(self, project: str, repo_id: str) -> Document:
        """The repository and the caller's credentials. Raises `ResourceNotExists`."""
        body = {"repo_id": repo_id, "include_creds": True}
        repo: Document = self._connection.post(f"/api/project/{project}/repos/get", body)
        return repo

    def list(self, project: str) -> Documents:
        """The repositories that the project knows."""
        repos: Documents = self._connection.post(f"/api/project/{project}/repos/list")
        return repos

    def delete(self, project: str, repo_ids: Sequence[str]) -> None:
        """Forgets repositories and the credentials for them."""
        self._connection.post(f"/api/project/{project}/repos/delete", {"repos_ids": [*repo_ids]})

    def upload_code(self, project: str, repo_id: str, diff: bytes) -> str:
        """Stores a diff; returns its SHA-256, the `repo_code_hash` of a run."""
        digest = hashlib.sha256(diff).hexdigest()
        path = f"/api/project/{project}/repos/upload_code?repo_id={quote(repo_id, safe='')}"
        self._connection.upload(path, digest, diff)
        return digest


class FilesApi:
    """Calls about archives of files."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def upload_archive(self, content: bytes) -> str:
        """Stores a tar archive; returns its id."""
        answer = self._connection.upload("/api/files/upload_archive", hashlib.sha256(content).hexdigest(), content)
        return str(answer["id"])

    def find_archive(self, digest: str) -> Document:
        """The user's archive with that SHA-256. Raises `ResourceNotExists`."""
        archive: Document = self._connection.post("/api/files/get_archive_by_hash", {"hash": digest})
        return archive
