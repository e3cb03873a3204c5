"""Answers of the proxy's own, as bytes: JSON bodies of the form ``{"detail": text}``."""

from __future__ import annotations

import json
from email.utils import formatdate
from http import HTTPStatus


def answer(
    status: int, detail: str, *, method: bytes = b"GET", is_closing: bool, extra: tuple[bytes, ...] = ()
) -> bytes:
    """`extra` are further field lines."""
    body = json.dumps({"detail": detail}).encode()
    lines = [
        b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode()),
        b"Date: " + formatdate(usegmt=True).encode(),
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        *extra,
    ]
    if is_closing:
        lines.append(b"Connection: close")
    lines.append(b"\r\n")
    return b"\r\n".join(lines) + (b"" if method == b"HEAD" else body)
