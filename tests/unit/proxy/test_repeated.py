"""A head that repeats is read and built as a fresh one would be."""

from __future__ import annotations

import dataclasses

import pytest

from dstack.proxy.headers import (
    MAX_HEAD_BYTES,
    BadMessage,
    Hop,
    build_request_head,
    build_response_head,
    forwarded_lines,
    parse_request_head,
    parse_response_head,
)
from dstack.proxy.repeated import MAX_TAILS, RequestHeads, ResponseHeads, request_tail, response_head

FIELDS = b"Host: a\r\nAuthorization: Bearer t\r\nAccept: */*\r\n\r\n"
OTHERS = b"Host: b\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
STARTS = [
    b"GET /x HTTP/1.1\r\n",
    b"POST /y?z HTTP/1.1\r\n",
    b"GET /x HTTP/1.0\r\n",
    b"GET http://other/x HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
]
HOP = Hop(b"127.0.0.1", b"http", is_trusted=False)


@pytest.mark.parametrize("first", STARTS)
@pytest.mark.parametrize("second", STARTS)
@pytest.mark.parametrize("fields", [FIELDS, OTHERS])
def test_a_request_after_another_is_read_as_alone(first: bytes, second: bytes, fields: bytes) -> None:
    heads = RequestHeads()
    for head in (first + FIELDS, second + fields, first + fields):
        alone = parse_request_head(head)
        read = heads.read(head)
        assert dataclasses.replace(read, tails={}) == alone


@pytest.mark.parametrize(
    "start",
    [b"GET /x HTTP/2.1\r\n", b"GET  /x HTTP/1.1\r\n", b"GE(T /x HTTP/1.1\r\n", b"GET /x y HTTP/1.1\r\n", b"\r\n"],
)
def test_a_bad_start_line_is_refused_after_a_good_one_too(start: bytes) -> None:
    heads = RequestHeads()
    heads.read(STARTS[0] + FIELDS)
    with pytest.raises(BadMessage):
        heads.read(start + FIELDS)
    with pytest.raises(BadMessage):
        heads.read(b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n" + FIELDS)


def test_what_a_replica_gets_follows_method_service_and_prefix() -> None:
    heads = RequestHeads()
    for _ in range(2):
        for start in STARTS[:3]:
            for with_authorization in (True, False):
                for prefix in (b"", *(b"/p%d" % number for number in range(MAX_TAILS))):
                    request = heads.read(start + FIELDS)
                    tail = request_tail(request, HOP, prefix, with_authorization=with_authorization)
                    assert b"%b %b%b" % (request.method, b"/", tail) == build_request_head(
                        request,
                        b"/",
                        forwarded=forwarded_lines(request, HOP, prefix),
                        with_authorization=with_authorization,
                        with_upgrade=False,
                    )


def test_answers_that_repeat_and_change() -> None:
    heads = ResponseHeads()
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    second = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
    for head in (first, first, second, first):
        alone, read = parse_response_head(head), heads.read(head)
        assert dataclasses.replace(read, built={}) == alone
        for is_closing in (True, False):
            for minor in (0, 1):
                arguments = {"is_chunked": False, "is_closing": is_closing, "minor": minor}
                assert response_head(read, **arguments) == build_response_head(alone, **arguments)  # type: ignore[arg-type] # bool and int
