"""What goes wrong on a gateway."""

from __future__ import annotations


class GatewayError(Exception):
    """The request of the server cannot be done; it is answered 400 with this text."""


class ServerSilent(Exception):
    """The server could not be asked, or gave an answer that is none."""
