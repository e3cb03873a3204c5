"""The client of a simulated cloud (`python -m dstack.agent.simulator`): HTTP on a Unix socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from dstack.core.errors import BackendError, BackendUnavailable, NoCapacity, QuotaExceeded

TIMEOUT_S = 60.0
_KINDS: dict[str, type[BackendError]] = {
    "no_capacity": NoCapacity,
    "quota": QuotaExceeded,
    "not_found": BackendError,
}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("cloud", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(TIMEOUT_S)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


def call(cloud_socket: Path, method: str, path: str, body: Any = None) -> Any:
    """One request, blocking. Raises the BackendError that the cloud named, or BackendUnavailable."""
    try:
        with contextlib.closing(_UnixConnection(cloud_socket)) as connection:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BackendUnavailable(f"The simulated cloud at {cloud_socket} gave no answer: {error}") from error
    answer = json.loads(data) if data else None
    if response.status >= 400:
        told = answer if isinstance(answer, dict) else {}
        kind = _KINDS.get(str(told.get("code")), BackendUnavailable)
        raise kind(f"The simulated cloud refused: {told.get('error') or response.status}")
    return answer
