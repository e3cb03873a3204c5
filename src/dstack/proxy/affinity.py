"""What ties a request to a replica: the beginning of its prompt, or its session. No I/O."""

from __future__ import annotations

import asyncio
import json
import re
from hashlib import blake2b
from typing import Any

from dstack.proxy.headers import Hop, RequestHead

MAX_BODY_BYTES = 65536
"""What of a body is looked at."""

_PROMPT = re.compile(r'"(messages|prompt|input|inputs)"[ \t\r\n]*:[ \t\r\n]*')
_NEXT = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_LIST_OPENED = 1


def prompt_key(body: bytes, length: int) -> bytes | None:
    """Of the prompt's first `length` characters: `messages` up to the first one of the user, `prompt` or `input`.

    `body` may be the beginning of a longer one. None where no prompt is found.
    """
    text = body[:MAX_BODY_BYTES].decode("utf-8", "replace")
    match = _PROMPT.search(text)
    if match is None:
        return None
    prompt = "".join(_texts(text, match.end(), length))[:length]
    return blake2b(prompt.encode(), digest_size=16).digest() if prompt else None


def _texts(text: str, position: int, length: int) -> list[str]:
    """Of the value that begins there; what is cut off counts as it stands."""
    if not text.startswith("[", position):
        return [_value(text, position)[0]]
    found: list[str] = []
    position += _LIST_OPENED
    while position < len(text) and text[position] != "]" and sum(map(len, found)) < length:
        shown, position, is_users = _value(text, position)
        found.append(shown)
        if is_users:
            break
        position = _end_of(_NEXT, text, position)
    return found


def _end_of(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return position if match is None else match.end()


def _value(text: str, position: int) -> tuple[str, int, bool]:
    """Of a JSON value: its text, where it ends, and whether it is a message of the user."""
    try:
        value, end = _DECODER.raw_decode(text, position)
    except (json.JSONDecodeError, RecursionError):
        return text[position:], len(text), True
    is_users = isinstance(value, dict) and value.get("role") == "user"
    return _shown(value), end, is_users


def _shown(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return f"{value.get('role')}\n{value['content']}\n"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


class BodyStart:
    """The pieces of a body that came before it is known where they go."""

    __slots__ = ("_bytes", "is_enough", "pieces")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_enough = asyncio.Event()
        """To be set at the body's end, too."""
        self._bytes = 0

    def add(self, piece: bytes) -> bool:
        """Whether it is enough now."""
        self.pieces.append(piece)
        self._bytes += len(piece)
        if self._bytes >= MAX_BODY_BYTES:
            self.is_enough.set()
        return self.is_enough.is_set()


def header_key(request: RequestHead, name: bytes) -> bytes | None:
    """The value of a header, by its name in lower case."""
    if name == b"authorization":
        return request.authorization
    for line in request.lines:
        found, _, value = line.partition(b":")
        if found.lower() == name:
            return value.strip(b" \t")
    return None


def cookie_key(request: RequestHead, name: bytes) -> bytes | None:
    """The value of a cookie."""
    for line in request.lines:
        if line[:7].lower() == b"cookie:":
            for pair in line[7:].split(b";"):
                key, _, value = pair.strip(b" \t").partition(b"=")
                if key == name:
                    return value
    return None


def set_cookie(name: bytes, value: bytes, prefix: bytes, hop: Hop) -> bytes:
    """The field line that ties a browser's session; `prefix`: the path of the service."""
    secure = b"; Secure" if hop.scheme == b"https" else b""
    return b"Set-Cookie: %b=%b; Path=%b/; HttpOnly; SameSite=Lax%b" % (name, value, prefix, secure)
