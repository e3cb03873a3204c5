"""Answers of the proxy's own, as bytes: JSON bodies of the form ``{"detail": text}``."""

from __future__ import annotations

import json
from email.utils import formatdate
from http import HTTPStatus


def answer(
    status: int, detail: str | None, *, method: bytes = b"GET", is_closing: bool, extra: tuple[bytes, ...] = ()
) -> bytes:
    """`extra` are further field lines. Without `detail` there is no body."""
    body = b"" if detail is None else json.dumps({"detail": detail}).encode()
    lines = [
        b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode()),
        b"Date: " + formatdate(usegmt=True).encode(),
        *extra,
    ]
    if detail is not None:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    if is_closing:
        lines.append(b"Connection: close")
    lines.append(b"\r\n")
    return b"\r\n".join(lines) + (b"" if method == b"HEAD" else body)
