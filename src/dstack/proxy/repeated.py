"""Heads that repeat: what clients and replicas say again and again on one connection is read and built once.

A head is reused only where it came again byte for byte (of a request: all but its start line), so that nothing can
differ from a fresh reading.
"""

from __future__ import annotations

import re

from dstack.proxy.headers import (
    MAX_HEAD_BYTES,
    TOKEN,
    WRITING,
    Hop,
    RequestHead,
    ResponseHead,
    build_request_tail,
    build_response_head,
    forwarded_lines,
    parse_request_head,
    parse_response_head,
)

MAX_REMEMBERED_BYTES = 4096
"""Of a head that is kept so that the next one can be compared with it."""
MAX_TAILS = 8

_REQUEST_START = re.compile(rb"(" + TOKEN + rb") (/[\x21\x22\x24-\x7e\x80-\xff]*) HTTP/1\.")


class RequestHeads:
    """Reads the heads of one connection's requests. Clients repeat their fields: those that came byte for byte
    with the request before are not read again, only the start line is."""

    __slots__ = ("_fields", "_last")

    def __init__(self) -> None:
        self._fields = b""
        """From the minor version to the end of the head."""
        self._last: RequestHead | None = None

    def read(self, head: bytes) -> RequestHead:
        """As `parse_request_head`."""
        start = head.find(b"\r\n") - 1
        last = self._last
        if last is not None and head[start:] == self._fields and len(head) <= MAX_HEAD_BYTES:
            match = _REQUEST_START.fullmatch(head, 0, start)
            if match is not None:
                return _repeated(last, match[1], match[2])
        request = parse_request_head(head)
        is_kept = (
            len(head) - start <= MAX_REMEMBERED_BYTES and _REQUEST_START.fullmatch(head, 0, start) is not None
        )
        self._fields, self._last = (head[start:], request) if is_kept else (b"", None)
        return request


def _repeated(last: RequestHead, method: bytes, target: bytes) -> RequestHead:
    """The same fields with another start line in origin form."""
    return RequestHead(
        method, target, last.minor, last.host, last.length, last.lines, last.authorization, last.is_closing,
        last.upgrade, last.expects_continue, last.forwarding, last.tails,
    )  # fmt: skip


class ResponseHeads:
    """Reads the heads of one replica connection's answers; one that repeats the last is not read again."""

    __slots__ = ("_head", "_last")

    def __init__(self) -> None:
        self._head = b""
        self._last: ResponseHead | None = None

    def read(self, head: bytes) -> ResponseHead:
        """As `parse_response_head`."""
        if self._last is not None and head == self._head:
            return self._last
        response = parse_response_head(head)
        self._head, self._last = (head, response) if len(head) <= MAX_REMEMBERED_BYTES else (b"", None)
        return response


def response_head(response: ResponseHead, *, is_chunked: bool, is_closing: bool, minor: int) -> bytes:
    """`build_response_head`, once for each repetition of the answer."""
    key = (is_chunked, is_closing, minor)
    built = response.built.get(key)
    if built is None:
        built = response.built[key] = build_response_head(
            response, is_chunked=is_chunked, is_closing=is_closing, minor=minor
        )
    return built


def request_tail(request: RequestHead, hop: Hop, prefix: bytes, *, with_authorization: bool) -> bytes:
    """All that the replica gets after the start line's target; `hop` is the same for all of a connection."""
    is_writing = request.method in WRITING
    key = (prefix, with_authorization, is_writing)
    tail = request.tails.get(key)
    if tail is None:
        tail = build_request_tail(
            request,
            forwarded=forwarded_lines(request, hop, prefix),
            with_authorization=with_authorization,
            with_upgrade=request.upgrade == b"websocket" and request.length == 0,
        )
        if len(request.tails) >= MAX_TAILS:
            request.tails.clear()
        request.tails[key] = tail
    return tail
