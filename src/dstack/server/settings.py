"""Every setting of the server: one registry that parsing, the documentation and its test all read.

A flag is on when its variable is present, whatever its value; the other types say what they accept.
"""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dstack.core.errors import DstackError
from dstack.core.images import Images


class SettingsError(DstackError):
    """An environment variable has a value that makes no sense."""


ANY_ADDRESS = ("0.0.0.0", "::")


@functools.lru_cache(maxsize=1)
def own_address() -> str:
    """The address of this machine that leads out of it; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of RFC 5737, where nobody is
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@dataclass(frozen=True)
class Setting:
    """One environment variable. `default` is for people; `read` turns its text (None: unset) into the value."""

    env: str
    field: str
    default: str
    help: str
    read: Callable[[str | None], Any]


class SshPort(NamedTuple):
    """Where the SSH door listens; 0: on a free port."""

    number: int
    is_default: bool = False
    """Nobody asked for this very port, so a server that finds it taken goes on without."""


class SshAddress(NamedTuple):
    """Where clients find the SSH door."""

    hostname: str
    port: int


@dataclass(frozen=True)
class Settings:
    """What the environment asks for. Sizes in bytes, times in seconds."""

    host: str
    port: int
    ssh_port: SshPort | None
    ssh_told_address: SshAddress | None
    sshproxy_token: str | None
    sshproxy_enforced: bool
    url: str | None
    server_dir: Path
    database_url: str
    admin_token: str | None
    log_level: str
    root_log_level: str
    uvicorn_log_level: str
    log_format: str
    config_disabled: bool
    background_disabled: bool
    update_default_project: bool
    keep_default_project: bool
    local_backend: str
    code_upload_limit: int
    user_project_quota: int
    forbid_services_without_gateway: bool
    service_client_timeout: int
    service_max_body_size: int
    service_hold_timeout: int
    service_hold_limit: int
    base_image: str
    base_image_version: str
    base_image_ubuntu: str
    docker_image: str
    shutdown_timeout: int
    prometheus_enabled: bool
    prometheus_token: str | None
    ssh_connect_seconds: int
    ssh_pool_disabled: bool
    metrics_running_ttl: int
    metrics_finished_ttl: int
    instance_health_ttl: int
    gateway_max_body_size: int
    gateway_package_url: str | None
    gateway_update_skipped: bool
    gateway_max_replicas: int
    acme_server: str | None
    acme_eab_kid: str | None
    acme_eab_hmac_key: str | None

    @property
    def public_url(self) -> str:
        """Without a slash at its end."""
        host = own_address() if self.host in ANY_ADDRESS else self.host
        shown_host = f"[{host}]" if ":" in host else host
        return (self.url or f"http://{shown_host}:{self.port}").rstrip("/")

    @property
    def ssh_door_address(self) -> SshAddress | None:
        """Where the SSH door itself is reached; None when it does not listen."""
        if self.ssh_port is None:
            return None
        return SshAddress(urlsplit(self.public_url).hostname or self.host, self.ssh_port.number)

    @property
    def sshproxy_address(self) -> SshAddress | None:
        """Of a separate SSH proxy; None unless there is one, which has to know the token."""
        return self.ssh_told_address if self.sshproxy_token else None

    @property
    def ssh_address(self) -> SshAddress | None:
        """Where clients are told to find the SSH door; None when it does not listen, or is not for them."""
        own = self.ssh_door_address
        if own is None or self.is_sshproxy_only:
            return None
        return own if self.sshproxy_address else self.ssh_told_address or own

    @property
    def is_sshproxy_only(self) -> bool:
        """Whether the separate SSH proxy is the only way into jobs."""
        return self.sshproxy_enforced and self.sshproxy_address is not None

    @property
    def images(self) -> Images:
        """Of jobs that name none."""
        return Images.of(self.base_image, self.base_image_version, self.base_image_ubuntu, self.docker_image)

    @property
    def config_path(self) -> Path:
        return self.server_dir / "config.yml"

    @property
    def logs_dir(self) -> Path:
        """Holds a folder for each project."""
        return self.server_dir / "projects"

    @property
    def hosts_dir(self) -> Path:
        """What backends keep on this machine: the folder of the local agent."""
        return self.server_dir / "hosts"

    @property
    def tunnel_keys_dir(self) -> Path:
        """Private keys while the proxy connects to a host; empty else."""
        return self.server_dir / "tunnels"


def _text(default: str | None) -> Callable[[str | None], str | None]:
    return lambda value: value or default


def _image_part(default: str, pattern: str, expected: str) -> Callable[[str | None], str]:
    """A part of an image's reference."""

    def read(value: str | None) -> str:
        if value and not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}")
        return value or default

    return read


def _flag(value: str | None) -> bool:
    return value is not None


def _number(default: int, *, minimum: int, maximum: int | None = None) -> Callable[[str | None], int]:
    def read(value: str | None) -> int:
        if not value:
            return default
        number = int(value) if value.strip().lstrip("-").isdigit() else None
        if number is None or number < minimum or (maximum is not None and number > maximum):
            upper = f" to {maximum}" if maximum is not None else " or more"
            raise ValueError(f"expected a whole number, {minimum}{upper}")
        return number

    return read


def _choice(default: str, *choices: str, upper: bool = False) -> Callable[[str | None], str]:
    def read(value: str | None) -> str:
        chosen = (value or default).upper() if upper else (value or default).lower()
        if chosen not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return chosen

    return read


def _folder(value: str | None) -> Path:
    return Path(value or "~/.dstack/server").expanduser().absolute()


def _ssh_port(value: str | None) -> SshPort | None:
    if value is not None and value.strip().lower() == "off":
        return None
    try:
        number = _number(DEFAULT_SSH_PORT, minimum=0, maximum=65535)(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 'off'") from None
    return SshPort(number, is_default=not value)


def _ssh_address(value: str | None) -> SshAddress | None:
    if not value:
        return None
    try:
        parts = urlsplit(f"//{value}")
        hostname, port = parts.hostname, parts.port
    except ValueError:
        hostname, port, parts = None, None, None
    if not hostname or parts is None or parts.path or parts.query or parts.username is not None:
        raise ValueError("expected host or host:port, such as ssh.example.com:3022")
    return SshAddress(hostname, port or 22)


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

DEFAULT_SSH_PORT = 3022

_REPOSITORY = r"[a-z0-9._-]+(:[0-9]+/[a-z0-9._-]+)?(/[a-z0-9._-]+)*"
_VERSION = r"[A-Za-z0-9_.-]+"

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "DSTACK_SERVER_HOST",
        "host",
        "`127.0.0.1`",
        "Address to listen on; `--host` beats it.",
        _text("127.0.0.1"),
    ),
    Setting(
        "DSTACK_SERVER_PORT",
        "port",
        "`3000`",
        "Port to listen on; `--port` beats it.",
        _number(3000, minimum=0, maximum=65535),
    ),
    Setting(
        "DSTACK_SERVER_SSH_PORT",
        "ssh_port",
        "`3022`",
        "Port on which SSH leads into jobs ([SSH](../concepts/ssh.md)): `0` a free one, `off` none. When the "
        "default port is taken by somebody else, the server goes on without; one that is asked for must be free.",
        _ssh_port,
    ),
    Setting(
        "DSTACK_SERVER_SSHPROXY_ADDRESS",
        "ssh_told_address",
        "unset",
        "`host[:port]` (port 22 without one) where clients find that port, when it is not the host of the "
        "server's URL: a load balancer, for example. With `DSTACK_SSHPROXY_API_TOKEN` it is the address of a "
        "[separate SSH proxy](../concepts/ssh.md#a-separate-ssh-proxy).",
        _ssh_address,
    ),
    Setting(
        "DSTACK_SSHPROXY_API_TOKEN",
        "sshproxy_token",
        "unset",
        "Bearer token of `/api/sshproxy/get_upstream`, with which a separate SSH proxy asks for its way to a job; "
        "when unset, nobody may ask, and there is no such proxy.",
        _text(None),
    ),
    Setting(
        "DSTACK_SERVER_SSH_CONNECT_TIMEOUT",
        "ssh_connect_seconds",
        "`3`",
        "How long a host of an [SSH fleet](../guides/fleets.md) may take to accept a connection, in seconds.",
        _number(3, minimum=1),
    ),
    Setting(
        "DSTACK_SERVER_SSH_POOL_DISABLED",
        "ssh_pool_disabled",
        "off",
        "When set, each call to a host of an [SSH fleet](../guides/fleets.md) has an SSH connection of its own; "
        "otherwise all share one.",
        _flag,
    ),
    Setting(
        "DSTACK_SERVER_SSHPROXY_ENFORCED",
        "sshproxy_enforced",
        "off",
        "When set, the separate SSH proxy is the only way into jobs: the server's own port lets in nobody else, "
        "and SSH by WebSocket is refused. Ignored with a warning unless `DSTACK_SERVER_SSHPROXY_ADDRESS` and "
        "`DSTACK_SSHPROXY_API_TOKEN` are set.",
        _flag,
    ),
    Setting(
        "DSTACK_SERVER_URL",
        "url",
        "`http://{host}:{port}`",
        "The URL under which people reach the server: printed at start and written to the client's configuration.",
        _text(None),
    ),
    Setting(
        "DSTACK_SERVER_DIR",
        "server_dir",
        "`~/.dstack/server`",
        "Folder of `config.yml`, `data/sqlite.db` and the logs of jobs.",
        _folder,
    ),
    Setting(
        "DSTACK_DATABASE_URL",
        "database_url",
        "`sqlite+aiosqlite:///{server dir}/data/sqlite.db`",
        "The database: `sqlite+aiosqlite:////path/to/file.db` or `postgresql+asyncpg://user:password@host/name`.",
        _text(""),
    ),
    Setting(
        "DSTACK_SERVER_ADMIN_TOKEN",
        "admin_token",
        "random",
        "Token of the user `admin`, the same as `--token`. Read only when that user is made at the first start.",
        _text(None),
    ),
    Setting(
        "DSTACK_SERVER_LOG_LEVEL",
        "log_level",
        "`INFO`",
        "Level of the server's own log: `DEBUG`, `INFO`, `WARNING`, `ERROR`, `CRITICAL`.",
        _choice("INFO", *_LEVELS, upper=True),
    ),
    Setting(
        "DSTACK_SERVER_ROOT_LOG_LEVEL",
        "root_log_level",
        "`ERROR`",
        "Level of the log of the libraries.",
        _choice("ERROR", *_LEVELS, upper=True),
    ),
    Setting(
        "DSTACK_SERVER_UVICORN_LOG_LEVEL",
        "uvicorn_log_level",
        "`ERROR`",
        "Level of the log of the HTTP server.",
        _choice("ERROR", *_LEVELS, upper=True),
    ),
    Setting(
        "DSTACK_SERVER_LOG_FORMAT",
        "log_format",
        "`standard`",
        "`standard` (lines for people; `rich` means the same) or `json` (one object a line).",
        _choice("standard", "standard", "rich", "json"),
    ),
    Setting(
        "DSTACK_SERVER_CONFIG_DISABLED",
        "config_disabled",
        "off",
        "When set, `config.yml` is neither read nor made.",
        _flag,
    ),
    Setting(
        "DSTACK_SERVER_BACKGROUND_PROCESSING_DISABLED",
        "background_disabled",
        "off",
        "When set, this replica answers requests only and moves no run forward.",
        _flag,
    ),
    Setting(
        "DSTACK_UPDATE_DEFAULT_PROJECT",
        "update_default_project",
        "off",
        "When set, project `main` of this server becomes the default of `~/.dstack/config.yml`; the same as `-y`.",
        _flag,
    ),
    Setting(
        "DSTACK_DO_NOT_UPDATE_DEFAULT_PROJECT",
        "keep_default_project",
        "off",
        "When set, the default project of `~/.dstack/config.yml` stays what it is; the same as `-n`.",
        _flag,
    ),
    Setting(
        "DSTACK_LOCAL_BACKEND",
        "local_backend",
        "`auto`",
        "Whether project `main` gets the `local` backend and a fleet on it, so that runs work on this machine: "
        "`on`, `off`, or `auto`: only when the server listens on a loopback address.",
        _choice("auto", "auto", "on", "off"),
    ),
    Setting(
        "DSTACK_SERVER_CODE_UPLOAD_LIMIT",
        "code_upload_limit",
        "`2097152`",
        "Largest upload of code or files in bytes; `0` means no limit.",
        _number(2 * 1024 * 1024, minimum=0),
    ),
    Setting(
        "DSTACK_USER_PROJECT_DEFAULT_QUOTA",
        "user_project_quota",
        "`10`",
        "How many projects a user who is no admin may own.",
        _number(10, minimum=0),
    ),
    Setting(
        "DSTACK_FORBID_SERVICES_WITHOUT_GATEWAY",
        "forbid_services_without_gateway",
        "off",
        "When set, services that would be published by the server itself are refused.",
        _flag,
    ),
    Setting(
        "DSTACK_SERVICE_CLIENT_TIMEOUT",
        "service_client_timeout",
        "`300`",
        "Seconds that a replica of a service may be silent while a request is on its way.",
        _number(300, minimum=1),
    ),
    Setting(
        "DSTACK_SERVICE_MAX_BODY_SIZE",
        "service_max_body_size",
        "`0`",
        "Largest body of a request to a service that the server publishes itself, in bytes; `0` means no limit.",
        _number(0, minimum=0),
    ),
    Setting(
        "DSTACK_SERVICE_HOLD_TIMEOUT",
        "service_hold_timeout",
        "`300`",
        "Seconds that a request to a service that is scaled to zero waits for its replica; then it gets a 503.",
        _number(300, minimum=0),
    ),
    Setting(
        "DSTACK_SERVICE_HOLD_LIMIT",
        "service_hold_limit",
        "`1000`",
        "How many requests to one such service wait at a time; further ones get a 503 at once.",
        _number(1000, minimum=0),
    ),
    Setting(
        "DSTACK_DOCKER_BASE_IMAGE",
        "base_image",
        "`dstackai/base`",
        "Repository of the [image](../guides/docker.md#images) of containers that ask for none. The tag is "
        "`{version}-base-ubuntu{ubuntu version}`, with `devel` for `base` where `nvcc` is set. What was submitted "
        "before a change keeps its image.",
        _image_part("dstackai/base", _REPOSITORY, "a repository without a tag, such as registry.example.com/base"),
    ),
    Setting(
        "DSTACK_DOCKER_BASE_IMAGE_VERSION",
        "base_image_version",
        "`0.16`",
        "The version in that tag.",
        _image_part("0.16", _VERSION, "a part of a tag: letters, digits, '.', '_' and '-'"),
    ),
    Setting(
        "DSTACK_DOCKER_BASE_IMAGE_UBUNTU_VERSION",
        "base_image_ubuntu",
        "`24.04`",
        "The version of Ubuntu in that tag.",
        _image_part("24.04", _VERSION, "a part of a tag: letters, digits, '.', '_' and '-'"),
    ),
    Setting(
        "DSTACK_DIND_IMAGE",
        "docker_image",
        "`dstackai/dind`",
        "[Image](../guides/docker.md#docker-in-a-job) of jobs with `docker: true`.",
        _image_part("dstackai/dind", r"\S+", "the name of an image, such as registry.example.com/dind:1"),
    ),
    Setting(
        "DSTACK_SERVER_SHUTDOWN_TIMEOUT",
        "shutdown_timeout",
        "`10`",
        "Seconds that open requests have to end after SIGTERM.",
        _number(10, minimum=0),
    ),
    Setting(
        "DSTACK_ENABLE_PROMETHEUS_METRICS",
        "prometheus_enabled",
        "off",
        "When set, `/metrics` answers in the text format of Prometheus; see [Metrics](metrics.md).",
        _flag,
    ),
    Setting(
        "DSTACK_PROMETHEUS_AUTH_TOKEN",
        "prometheus_token",
        "unset",
        "The Bearer token that `/metrics` demands; when unset, it demands none.",
        _text(None),
    ),
    Setting(
        "DSTACK_SERVER_METRICS_RUNNING_TTL_SECONDS",
        "metrics_running_ttl",
        "`3600`",
        "How long measurements of jobs are kept while the job runs, in seconds.",
        _number(3600, minimum=0),
    ),
    Setting(
        "DSTACK_SERVER_INSTANCE_HEALTH_TTL_SECONDS",
        "instance_health_ttl",
        "`604800`",
        "How long health reports of instances are kept, in seconds. The newest of each instance always is.",
        _number(604800, minimum=0),
    ),
    Setting(
        "DSTACK_DEFAULT_SERVICE_CLIENT_MAX_BODY_SIZE",
        "gateway_max_body_size",
        "`67108864`",
        "Largest body of a request to a service on a gateway, in bytes; `0` means no limit.",
        _number(64 * 1024 * 1024, minimum=0),
    ),
    Setting(
        "DSTACK_GATEWAY_PACKAGE_URL",
        "gateway_package_url",
        "unset",
        "The package that is installed on gateway hosts in place of this server's own version.",
        _text(None),
    ),
    Setting(
        "DSTACK_SKIP_GATEWAY_UPDATE",
        "gateway_update_skipped",
        "off",
        "When set, gateways that have another version than this server are left as they are.",
        _flag,
    ),
    Setting(
        "DSTACK_SERVER_GATEWAY_MAX_REPLICAS",
        "gateway_max_replicas",
        "`9`",
        "How many machines may carry one gateway.",
        _number(9, minimum=1),
    ),
    Setting(
        "DSTACK_ACME_SERVER",
        "acme_server",
        "unset",
        "URL of the directory of the certificate authority that gateways ask; unset: Let's Encrypt.",
        _text(None),
    ),
    Setting(
        "DSTACK_ACME_EAB_KID",
        "acme_eab_kid",
        "unset",
        "Identifier of an account at that authority (external account binding).",
        _text(None),
    ),
    Setting(
        "DSTACK_ACME_EAB_HMAC_KEY",
        "acme_eab_hmac_key",
        "unset",
        "The key of that account.",
        _text(None),
    ),
    Setting(
        "DSTACK_SERVER_METRICS_FINISHED_TTL_SECONDS",
        "metrics_finished_ttl",
        "`604800`",
        "How long the measurements that a job had when it finished are kept, in seconds.",
        _number(604800, minimum=0),
    ),
)


def load(environ: Mapping[str, str]) -> Settings:
    """Raises `SettingsError` naming the variable, its value and what would be right."""
    values = {setting.field: _read(setting, environ.get(setting.env)) for setting in SETTINGS}
    if values["update_default_project"] and values["keep_default_project"]:
        raise SettingsError(
            "DSTACK_UPDATE_DEFAULT_PROJECT and DSTACK_DO_NOT_UPDATE_DEFAULT_PROJECT exclude each other; "
            "set one of them"
        )
    values["database_url"] = values["database_url"] or f"sqlite+aiosqlite:///{values['server_dir']}/data/sqlite.db"
    return Settings(**values)


def _read(setting: Setting, text: str | None) -> Any:
    try:
        return setting.read(text)
    except ValueError as error:
        raise SettingsError(f"{setting.env}={text}: {error}") from None
