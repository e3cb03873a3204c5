"""Local ports for the ports of a job: taken before the run is submitted, and shown in what the job prints."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dstack.api.errors import AttachError
from dstack.api.ssh.machine import network_id

LOOPBACK = ("localhost", "127.0.0.1", "::1")

Document = dict[str, Any]


@dataclass(frozen=True)
class PortWish:
    """A port of the job, and the local one it must get; None: the same number if that is free, else another."""

    remote: int
    local: int | None = None


def wishes_of(job_spec: Document) -> list[PortWish]:
    """The ports that a job's spec shows: its apps', and a service's."""
    wishes = [PortWish(app["port"], app.get("map_to_port")) for app in job_spec.get("app_specs") or ()]
    service_port = job_spec.get("service_port")
    if service_port is not None and service_port not in {wish.remote for wish in wishes}:
        wishes.append(PortWish(service_port))
    return wishes


def override(wishes: Iterable[PortWish], flags: Iterable[str]) -> list[PortWish]:
    """The wishes with what `[LOCAL:]REMOTE` flags say. Raises AttachError for a port that no job has."""
    changed = {wish.remote: wish for wish in wishes}
    for flag in flags:
        local, _, remote = flag.rpartition(":")
        if not remote.isdecimal() or not (local.isdecimal() or local in ("", "*")):
            raise AttachError(f"{flag!r} is not a port: write -p 8080 or -p 80:8080")
        if int(remote) not in changed:
            known = ", ".join(map(str, changed)) or "none"
            raise AttachError(f"The job has no port {remote}; its ports: {known}")
        changed[int(remote)] = PortWish(int(remote), None if local == "*" else int(local or remote))
    return list(changed.values())


def find_ports_here(job: Document) -> frozenset[int]:
    """The ports of the job that are ports of this machine's loopback too: the job is a process on it."""
    told = job.get("job_connection_info") or {}
    if not told.get("host_network_id") or told["host_network_id"] != network_id():
        return frozenset()
    published = (job["job_submissions"][-1].get("job_runtime_data") or {}).get("ports") or {}
    return frozenset(int(inside) for inside, outside in published.items() if int(inside) == outside)


class ReservedPorts:
    """Local ports that nobody else gets: bound here until `ssh` takes them over."""

    def __init__(self, host: str = "localhost") -> None:
        self.host = host
        """The address that forwards listen on."""
        self.mapping: dict[int, int] = {}
        """Local ports by those of the job."""
        self._here: set[int] = set()
        """Ports of the job that are reached without a forward."""
        self._sockets: list[socket.socket] = []

    @property
    def forwards(self) -> dict[int, int]:
        """The part of the mapping that `ssh` is needed for."""
        return {remote: local for remote, local in self.mapping.items() if remote not in self._here}

    def reserve(self, wishes: Iterable[PortWish], here: frozenset[int] = frozenset()) -> None:
        """Takes local ports for those that have none yet, fixed ones first. Raises AttachError for one in use.

        `here`: ports of the job that are on this machine's loopback already; who wishes for that number has it.
        """
        here = here if self.host in LOOPBACK else frozenset()
        for wish in sorted(wishes, key=lambda wish: wish.local is None):
            local = self.mapping.get(wish.remote) or wish.local or wish.remote
            if wish.remote in here and local == wish.remote:
                self.mapping[wish.remote] = local
                self._here.add(wish.remote)
                continue
            if wish.remote in self.mapping:
                continue
            if not self._try(local):
                if wish.local is not None:
                    raise AttachError(
                        f"The local port {local} on {self.host} is in use: end what uses it,"
                        f" or choose another with -p LOCAL:{wish.remote}"
                    )
                local = self._take_any()
            self.mapping[wish.remote] = local

    def hold(self) -> None:
        """Takes the ports again, as far as they are free, while `ssh` does not listen on them."""
        for local in self.forwards.values():
            self._try(local)

    def release(self) -> None:
        """Frees the ports for `ssh`, or for all."""
        for bound in self._sockets:
            bound.close()
        self._sockets.clear()

    def _take_any(self) -> int:
        for _ in range(100):
            with socket.socket(_addresses(self.host, 0)[0][0], socket.SOCK_STREAM) as probe:
                probe.bind((self.host, 0))
                local = int(probe.getsockname()[1])
            if self._try(local):
                return local
        raise AttachError(f"There is no free local port on {self.host}")

    def _try(self, port: int) -> bool:
        """Binds the port on every address of the host. An address that this machine does not have is left out."""
        bound: list[socket.socket] = []
        try:
            for family, address in _addresses(self.host, port):
                with contextlib.ExitStack() as closed_on_error:
                    one = closed_on_error.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    if _bind(one, address):
                        one.listen(1)
                        bound.append(one)
                        closed_on_error.pop_all()
        except PermissionError:
            raise AttachError(
                f"The local port {port} is for the system only: choose one above 1023 with -p LOCAL:{port}"
            ) from None
        except OSError:
            for one in bound:
                one.close()
            return False
        if not bound:
            raise AttachError(f"{self.host!r} is no address of this machine")
        self._sockets += bound
        return True


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AttachError(f"{host!r} is no address of this machine: {error.strerror or error}") from error
    return [(family, address) for family, _, _, _, address in found]


def _bind(one: socket.socket, address: Any) -> bool:
    try:
        one.bind(address)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return False
        raise
    return True


class UrlRewriter:
    """Shows the URLs that a job prints of itself with the local ports that lead there."""

    def __init__(self, mapping: Mapping[int, int], host: str) -> None:
        """`mapping`: local ports by those of the job; `host`: where they listen."""
        shown = f"[{host}]" if ":" in host else host
        self._targets = {str(remote).encode(): f"{shown}:{local}".encode() for remote, local in mapping.items()}
        ports = b"|".join(self._targets)
        self._pattern = re.compile(
            rb"(?<![\w.-])((?:https?|wss?)://)(?:localhost|0\.0\.0\.0|127\.0\.0\.1|\[::1?\]):("
            + ports
            + rb")(?!\d)"
        )

    def rewrite(self, text: bytes) -> bytes:
        """The text with such URLs replaced."""
        if not self._targets or b"://" not in text:
            return text
        return self._pattern.sub(lambda match: match[1] + self._targets[match[2]], text)
