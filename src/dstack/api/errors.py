"""What goes wrong on the client's side, besides what the server answers (see `dstack.core.errors`).

DstackError
└── ClientError
    ├── ConfigError             the client's own configuration: no project, a broken file
    ├── ServerUnreachable       no answer from the server (retryable)
    ├── ServerFailure           the server answered something that no client can act on (5xx, no JSON)
    │   └── NotSupported            the server does not have this call (it is older, or not a dstack server)
    └── AttachError             no way into a job: not running, no key, no connection, a port in use
"""

from __future__ import annotations

from dstack.core.errors import DstackError


class ClientError(DstackError):
    """Base of the errors of the client itself."""


class ConfigError(ClientError):
    """The client's own configuration does not allow the call."""


class ServerUnreachable(ClientError):
    """No connection to the server, or it broke before an answer came."""

    retryable = True


class ServerFailure(ClientError):
    """The server answered something that the client cannot act on."""


class NotSupported(ServerFailure):
    """The server does not have this call."""


class AttachError(ClientError):
    """There is no way into a job, or not the one that was asked for."""
