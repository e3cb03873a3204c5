"""Everything that stops us from doing or knowing something.

    DstackError
    ├── RequestError            what was asked for cannot be done; carries HTTP status and code
    │   ├── InvalidRequest          400 error
    │   ├── ResourceExists          400 resource_exists
    │   ├── ResourceNotExists       400 resource_not_exists
    │   ├── InvalidCredentials      400 invalid_credentials (of a backend; may name the fields)
    │   ├── BackendNotAvailable     400 backend_not_available
    │   ├── RepoNotExists           400 repo_does_not_exist
    │   ├── GatewayProblem          400 gateway_error
    │   ├── NotAuthenticated        401
    │   ├── Forbidden               403
    │   ├── ProjectNotFound         404
    │   └── TooManyAttempts         429
    ├── BackendError            a backend did not do what it was asked
    │   ├── NoCapacity              try another offer
    │   ├── QuotaExceeded           try another region
    │   ├── CredentialsRejected     the project's admin has to act
    │   └── BackendUnavailable      ask again later (retryable)
    ├── HostError               a host cannot be talked to
    │   ├── Unreachable             try again later (retryable)
    │   └── HostKeyChanged          somebody has to look
    ├── AgentError              an agent refused or answered nonsense
    └── StoreError              logs or files could not be stored or read (retryable)

`str(error)` is for the user: what happened, why, what to do. `detail` is for the log. Expected endings, such as a
command that fails, are no errors but termination reasons.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import ClassVar


class ErrorCode(str, enum.Enum):
    """The codes that the REST API puts beside the message of a 400."""

    ERROR = "error"
    RESOURCE_EXISTS = "resource_exists"
    RESOURCE_NOT_EXISTS = "resource_not_exists"
    INVALID_CREDENTIALS = "invalid_credentials"
    BACKEND_NOT_AVAILABLE = "backend_not_available"
    REPO_DOES_NOT_EXIST = "repo_does_not_exist"
    GATEWAY_ERROR = "gateway_error"


class DstackError(Exception):
    """Base of all our errors."""

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later without anybody doing something about it."""

    def __init__(self, message: str = "", *, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail or message


class RequestError(DstackError):
    """What was asked for cannot be done. The REST API answers with `status` and `code`."""

    status: ClassVar[int] = 400
    code: ClassVar[ErrorCode | None] = ErrorCode.ERROR
    default_message: ClassVar[str] = "The request cannot be fulfilled"

    def __init__(
        self,
        message: str = "",
        *,
        fields: Sequence[Sequence[str | int]] | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message or self.default_message, detail=detail)
        self.fields = [list(field) for field in fields or ()]
        """Paths of the fields of the request that are at fault, where that is known."""


class InvalidRequest(RequestError):
    """The request is well-formed but makes no sense or is not possible now."""


class ResourceExists(RequestError):
    """The name is taken."""

    code = ErrorCode.RESOURCE_EXISTS
    default_message = "Resource exists"


class ResourceNotExists(RequestError):
    """There is nothing of that name."""

    code = ErrorCode.RESOURCE_NOT_EXISTS
    default_message = "Resource not found"


class InvalidCredentials(RequestError):
    """A backend does not accept the credentials it was configured with."""

    code = ErrorCode.INVALID_CREDENTIALS
    default_message = "Invalid credentials"


class BackendNotAvailable(RequestError):
    """The project has no such backend, or it cannot do what is asked for."""

    code = ErrorCode.BACKEND_NOT_AVAILABLE
    default_message = "Backend not available"


class RepoNotExists(RequestError):
    """The repository has not been initialised."""

    code = ErrorCode.REPO_DOES_NOT_EXIST
    default_message = "Repo does not exist"


class GatewayProblem(RequestError):
    """A gateway could not do its part."""

    code = ErrorCode.GATEWAY_ERROR
    default_message = "Gateway error"


class NotAuthenticated(RequestError):
    """The request carries no token."""

    status = 401
    code = None
    default_message = "Not authenticated"


class Forbidden(RequestError):
    """The token is unknown, or its user may not do this."""

    status = 403
    code = None
    default_message = "Access denied"


class ProjectNotFound(RequestError):
    """There is no such project."""

    status = 404
    code = None
    default_message = "Project not found"


class TooManyAttempts(RequestError):
    """Too many failed attempts from one address."""

    status = 429
    code = None
    default_message = "Too many failed attempts"

    def __init__(self, message: str = "", *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BackendError(DstackError):
    """A backend did not do what it was asked."""


class NoCapacity(BackendError):
    """The backend has none of these to give at the moment; another offer may do."""


class QuotaExceeded(BackendError):
    """The account may not have more of these; another region or backend may do."""


class CredentialsRejected(BackendError):
    """The backend no longer accepts the project's credentials."""


class BackendUnavailable(BackendError):
    """The backend cannot be reached or is failing."""

    retryable = True


class HostError(DstackError):
    """A host cannot be talked to."""


class Unreachable(HostError):
    """No connection to the host, or it broke."""

    retryable = True


class HostKeyChanged(HostError):
    """The host shows another key than the one on record. Nothing is sent to it."""


class LoginRefused(HostError):
    """The host does not let us in."""

    retryable = True


class HostUnfit(HostError):
    """The host lacks what running jobs needs."""

    retryable = True


class AgentError(DstackError):
    """An agent refused a call or gave an answer that makes no sense."""


class StoreError(DstackError):
    """Logs or files could not be stored or read."""

    retryable = True
