"""Named tokens of users: what they look like and what is told of them.

A token is `dstack_`, 30 random letters and digits, and 6 that are the CRC-32 of what stands before them: scanners
of published sources find it by its prefix and, by the checksum, know a real one from text that looks like one.
"""

from __future__ import annotations

import secrets
import string
import zlib
from uuid import UUID

from dstack.core.models import CoreModel, Timestamp

PREFIX = "dstack_"
RANDOM_LENGTH = 30
CHECKSUM_LENGTH = 6
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase


class Token(CoreModel):
    """A named token. Its text is not kept, so that it cannot be shown again."""

    id: UUID
    name: str
    created_at: Timestamp
    expires_at: Timestamp | None = None
    last_used_at: Timestamp | None = None
    """To the hour."""
    projects: list[str] | None = None
    """The only projects that it opens; null: all of its user."""
    services_only: bool = False


class TokenWithValue(Token):
    """The answer to the creation of a token: the only one that has its text."""

    token: str


def generate() -> str:
    """A new token; its randomness is about 178 bits."""
    body = PREFIX + "".join(secrets.choice(_DIGITS) for _ in range(RANDOM_LENGTH))
    return body + _checksum(body)


def is_mistyped(token: str) -> bool:
    """Whether it has the prefix, but not the length and the checksum that belong to it."""
    if not token.startswith(PREFIX):
        return False
    body = token[:-CHECKSUM_LENGTH]
    return len(body) != len(PREFIX) + RANDOM_LENGTH or token[-CHECKSUM_LENGTH:] != _checksum(body)


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    text = ""
    while len(text) < CHECKSUM_LENGTH:
        number, digit = divmod(number, len(_DIGITS))
        text = _DIGITS[digit] + text
    return text
