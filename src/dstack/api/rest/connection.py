"""One HTTP/1.1 connection to a server, kept open between calls.

Built on the standard library: importing its client costs a third of what the smallest third-party one does, and
the time of `dstack ps` is mostly imports. Not safe for use by several threads at once; open one each.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from dstack import COMPATIBILITY_LEVEL
from dstack.api.errors import ConfigError, ServerFailure, ServerUnreachable
from dstack.api.rest.answers import check_status, parse_json

CONNECT_TRIES = 3
RETRY_DELAY = 1.0
"""Seconds between two tries to connect."""
ANSWER_TIMEOUT = 300.0
"""Seconds that a call may take; planning over many clouds is slow."""
MAX_IDLE = 2.0
"""Seconds after which an idle connection is not used again: the server may be about to close it."""

VERSION_VARIABLE = "DSTACK_CLIENT_API_VERSION"
CA_VARIABLE = "REQUESTS_CA_BUNDLE"
"""A file of certificate authorities to trust instead of the system's."""


class UnixSocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Connection:
    """Calls of the REST API. Raises the `RequestError` that an answer stands for, and `dstack.api.errors`."""

    def __init__(self, base_url: str, token: str | None, trace: Callable[[str], None] | None = None) -> None:
        self._trace = trace
        self.base_url = base_url.rstrip("/")
        self.token = token
        self._parts = _split_url(self.base_url)
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigError("The token has characters that no token has: copy it again")
        self._http: http.client.HTTPConnection | None = None
        self._used_at = 0.0

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON answer to a POST; without a body, none is sent."""
        return self._call("POST", path, *_encode_json(body))

    def get(self, path: str) -> Any:
        """The JSON answer to a GET."""
        return self._call("GET", path, None, {})

    def upload(self, path: str, filename: str, content: bytes) -> Any:
        """The JSON answer to a multipart POST of one part named `file`."""
        return self._call("POST", path, *_encode_multipart(filename, content))

    @contextmanager
    def stream(self, path: str, body: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """The objects of an answer of JSON lines, as they arrive. Raises `NotSupported` from older servers."""
        connection = self._fork()
        try:
            response = connection._send("POST", path, *_encode_json(body))
            if response.status != http.client.OK:
                check_status(path, response.status, response.read())
            yield connection._lines(response)
        finally:
            connection.close()

    def close(self) -> None:
        """Closes the connection; the next call opens another one."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def _fork(self) -> Connection:
        return Connection(self.base_url, self.token, self._trace)

    def _call(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Any:
        response = self._send(method, path, body, headers)
        with self._closed_on_failure():
            content = response.read()
        self._used_at = time.monotonic()
        check_status(path, response.status, content)
        return parse_json(path, content)

    def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        connection = self._connected()
        target = self._parts.path + quote(path, safe="/?=&%")
        with self._closed_on_failure():
            connection.request(method, target, body=body, headers=self._headers() | headers)
            response = connection.getresponse()
        if self._trace is not None:
            self._trace(f"{method} {self.base_url}{path} {response.status}")
        if 300 <= response.status < 400:
            self.close()
            raise ServerFailure(
                f"{self.base_url} redirects to {response.headers.get('Location')}: use that server's URL instead"
            )
        return response

    @contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        """An answer that was not read to its end (Ctrl-C counts) makes the connection useless for another."""
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._broken(error) from error
        except BaseException:
            self.close()
            raise

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "*/*", "X-API-VERSION": os.environ.get(VERSION_VARIABLE) or COMPATIBILITY_LEVEL}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def _connected(self) -> http.client.HTTPConnection:
        if self._http is not None and time.monotonic() - self._used_at > MAX_IDLE:
            self.close()
        if self._http is None:
            self._http = self._connect()
        return self._http

    def _connect(self) -> http.client.HTTPConnection:
        refused: OSError | None = None
        for attempt in range(CONNECT_TRIES):
            if attempt:
                time.sleep(RETRY_DELAY)
            connection = self._new_connection()
            try:
                connection.connect()
            except (ConnectionRefusedError, FileNotFoundError) as error:
                connection.close()
                refused = error
                continue
            except OSError as error:
                connection.close()
                raise ServerUnreachable(f"Cannot reach the server at {self.base_url}: {_reason(error)}") from error
            return connection
        raise ServerUnreachable(
            f"Cannot connect to the server at {self.base_url}: {_reason(refused)}."
            " Is it running? (`dstack server` starts one)"
        ) from refused

    def _new_connection(self) -> http.client.HTTPConnection:
        if self._parts.scheme == "http+unix":
            return UnixSocketConnection(unquote(self._parts.netloc), timeout=ANSWER_TIMEOUT)
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context(cafile=os.environ.get(CA_VARIABLE) or None)
            return http.client.HTTPSConnection(host, port, timeout=ANSWER_TIMEOUT, context=context)
        return http.client.HTTPConnection(host, port, timeout=ANSWER_TIMEOUT)

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        try:
            for line in iter(response.readline, b""):
                if line.strip():
                    yield json.loads(line)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> ServerUnreachable:
        return ServerUnreachable(f"The connection to the server at {self.base_url} broke: {_reason(error)}")


def _split_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https", "http+unix") and bool(parts.netloc)
        if parts.scheme != "http+unix":
            is_url = is_url and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(
            f"{url!r} is not the URL of a server: write http://, https:// or http+unix:// and a host"
        )
    return parts


def _reason(error: Exception | None) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _encode_json(body: Any) -> tuple[bytes | None, dict[str, str]]:
    if body is None:
        return None, {}
    return json.dumps(body).encode(), {"Content-Type": "application/json"}


def _encode_multipart(filename: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
