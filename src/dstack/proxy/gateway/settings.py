"""Where things are on a gateway host, and how its programs are called."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter


@dataclass(frozen=True)
class GatewaySettings:
    """The defaults are those of a Debian host; tests have ports and folders of their own."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    dir: Path
    """The app's own: state, sockets, the version that is active."""
    runtime_dir: Path = Path("/run/dstack-gateway")
    """Of the sockets that nginx's workers use: the app's user and their group may enter it."""
    app_port: int = 8000
    http_port: int = 80
    https_port: int = 443
    sites_dir: Path = Path("/etc/nginx/sites-enabled")
    access_log: Path = Path("/var/log/nginx/dstack.access.log")
    auth_cache_dir: Path = Path("/run/dstack-gateway-auth")
    """In memory on Debian: nginx writes the keys of its cache, which hold tokens, beside the answers."""
    letsencrypt_dir: Path = Path("/etc/letsencrypt")
    acme_webroot: Path = Path("/var/www/dstack-acme")
    nginx_pid_file: Path = Path("/run/nginx.pid")
    nginx_test: tuple[str, ...] = ("nginx", "-t", "-q")
    nginx_reload: tuple[str, ...] = ("systemctl", "reload-or-restart", "nginx.service")
    certbot: tuple[str, ...] = ("certbot",)

    @property
    def state_file(self) -> Path:
        return self.dir / "state-v2.json"

    @property
    def server_connections(self) -> Path:
        """Sockets that lead to the server; it makes them when it connects."""
        return self.dir / "server-connections"

    @property
    def replica_sockets(self) -> Path:
        return self.runtime_dir

    @property
    def known_tokens(self) -> Path:
        return self.runtime_dir / "tokens"

    @property
    def internal_socket(self) -> Path:
        """Where the app reaches services through nginx, without a token."""
        return self.dir / "internal.sock"

    @property
    def privilege(self) -> tuple[str, ...]:
        """What commands that need root begin with."""
        return () if os.geteuid() == 0 else ("sudo", "-n")

    @classmethod
    def read(cls, file: Path) -> GatewaySettings:
        """Of a JSON object with the fields' names as keys. Raises OSError, ValueError."""
        return TypeAdapter(cls).validate_json(file.read_bytes())
