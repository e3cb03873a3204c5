"""All groups of the REST API behind one connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dstack.api.rest.backends import BackendsApi
from dstack.api.rest.connection import Connection
from dstack.api.rest.fleets import FleetsApi
from dstack.api.rest.gateways import GatewaysApi
from dstack.api.rest.instances import InstancesApi
from dstack.api.rest.logs import LogsApi
from dstack.api.rest.metrics import MetricsApi
from dstack.api.rest.projects import EventsApi, ProjectsApi, SecretsApi, ServerApi, TemplatesApi
from dstack.api.rest.repos import FilesApi, ReposApi
from dstack.api.rest.runs import RunsApi
from dstack.api.rest.sharing import ExportsApi, ImportsApi
from dstack.api.rest.tokens import TokensApi
from dstack.api.rest.users import AuthApi, PublicKeysApi, UsersApi
from dstack.api.rest.volumes import VolumesApi

if TYPE_CHECKING:
    from typing_extensions import Self


class RestClient:
    """The REST API, answers as JSON documents: what costs least to import and to read.

    Whoever wants models validates the documents with `extra="ignore"`, as `dstack.api.client` does.
    """

    def __init__(self, base_url: str, token: str | None, trace: Callable[[str], None] | None = None) -> None:
        """`trace` is told each call and the status of its answer."""
        self.connection = Connection(base_url, token, trace)
        self.projects = ProjectsApi(self.connection)
        self.users = UsersApi(self.connection)
        self.tokens = TokensApi(self.connection)
        self.runs = RunsApi(self.connection)
        self.logs = LogsApi(self.connection)
        self.metrics = MetricsApi(self.connection)
        self.fleets = FleetsApi(self.connection)
        self.secrets = SecretsApi(self.connection)
        self.events = EventsApi(self.connection)
        self.repos = ReposApi(self.connection)
        self.files = FilesApi(self.connection)
        self.volumes = VolumesApi(self.connection)
        self.gateways = GatewaysApi(self.connection)
        self.exports = ExportsApi(self.connection)
        self.imports = ImportsApi(self.connection)
        self.instances = InstancesApi(self.connection)
        self.backends = BackendsApi(self.connection)
        self.public_keys = PublicKeysApi(self.connection)
        self.auth = AuthApi(self.connection)
        self.templates = TemplatesApi(self.connection)
        self.server = ServerApi(self.connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the next call opens another one."""
        self.connection.close()

    @property
    def base_url(self) -> str:
        """The server's URL, without a slash at its end."""
        return self.connection.base_url

    @property
    def token(self) -> str | None:
        """The user's token; None on calls before a login."""
        return self.connection.token
