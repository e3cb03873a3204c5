"""How a command ends other than well."""

from __future__ import annotations

from dstack.core.errors import DstackError


class CliError(DstackError):
    """Ends the command with one message for the user and an exit status."""

    def __init__(self, message: str, *, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status
