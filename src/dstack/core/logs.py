"""Lines of a job's output."""

import enum

from dstack.core.models import CoreModel, Timestamp


class LogEventSource(str, enum.Enum):
    """Which stream a piece of output came from."""

    STDOUT = "stdout"
    STDERR = "stderr"


class LogEvent(CoreModel):
    """A piece of output; `message` is its bytes in Base64."""

    timestamp: Timestamp
    log_source: LogEventSource
    message: str


class JobSubmissionLogs(CoreModel):
    """A page of output. Without `next_token` it is the last one."""

    logs: list[LogEvent]
    external_url: str | None = None
    next_token: str | None = None
