"""The pure rules: what is read, what is refused, what passes to the next hop."""

from __future__ import annotations

import pytest

from dstack.proxy.headers import (
    CHUNKED,
    UNTIL_CLOSE,
    BadMessage,
    Hop,
    build_request_head,
    build_response_head,
    check_partial_head,
    forwarded_lines,
    has_body,
    parse_request_head,
    parse_response_head,
)

HOP = Hop(b"10.0.0.9", b"http", False)


def request(*lines: bytes, start: bytes = b"GET /x HTTP/1.1", host: bytes | None = b"h") -> bytes:
    fields = ([b"Host: " + host] if host is not None else []) + list(lines)
    return b"\r\n".join([start, *fields, b"", b""])


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request(b"Content-Length: 1", b"Transfer-Encoding: chunked"), 400),
        (request(b"Content-Length: 1", b"Content-Length: 1"), 400),
        (request(b"Content-Length: 1, 1"), 400),
        (request(b"Content-Length: +1"), 400),
        (request(b"Content-Length: -1"), 400),
        (request(b"Content-Length: 0x1"), 400),
        (request(b"Content-Length:"), 400),
        (request(b"Content-Length: 1 1"), 400),
        (request(b"Content-Length: 9999999999999999999"), 400),
        (request(b"Content-Length : 1"), 400),
        (request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 501),
        (request(b"Transfer-Encoding: gzip, chunked"), 501),
        (request(b"Transfer-Encoding: chunked, identity"), 501),
        (request(b"Transfer-Encoding: xchunked"), 501),
        (request(b"Transfer-Encoding: \x0bchunked"), 400),
        (request(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"), 400),
        (request(b"A: b\r\n folded"), 400),
        (request(b"A: b\r\n\tfolded"), 400),
        (request(b"A: b\x00c"), 400),
        (request(b"A: b\rc"), 400),
        (request(b"A: b\nC: d"), 400),
        (request(b"A\x00: b"), 400),
        (request(b": b"), 400),
        (request(b"no colon"), 400),
        (request(host=None), 400),
        (request(b"Host: other"), 400),
        (request(host=b"a b"), 400),
        (request(host=b"a/b"), 400),
        (request(host=b"user@h"), 400),
        (request(start=b"GET  /x HTTP/1.1"), 400),
        (request(start=b"GET /x y HTTP/1.1"), 400),
        (request(start=b"GET /x#y HTTP/1.1"), 400),
        (request(start=b"GET x HTTP/1.1"), 400),
        (request(start=b"GET /x HTTP/2.0"), 400),
        (request(start=b"GET /x HTTP/1.2"), 400),
        (request(start=b"GET /x"), 400),
        (request(start=b"G\x7fT /x HTTP/1.1"), 400),
        (request(start=b"GET http:///x HTTP/1.1"), 400),
        (request(start=b"GET ftp://h/x HTTP/1.1"), 400),
        (request(b"Authorization: a", b"Authorization: b"), 400),
        (request(b"Expect: tea"), 417),
        (request(b"A: " + b"x" * 70000), 431),
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(BadMessage) as caught:
        parse_request_head(head)
    assert caught.value.status == status


def test_fields_pass_as_the_bytes_that_came() -> None:
    head = parse_request_head(request(b"X-Odd:  two  spaces ", b"cookie: a=b", b"Accept:*/*", b"X-L: caf\xe9"))
    assert head.lines == [b"X-Odd:  two  spaces ", b"cookie: a=b", b"Accept:*/*", b"X-L: caf\xe9"]
    assert (head.method, head.target, head.host, head.length, head.is_closing) == (b"GET", b"/x", b"h", 0, False)


@pytest.mark.parametrize(
    ("start", "target", "host"),
    [
        (b"GET http://other/a%2Fb?c HTTP/1.1", b"/a%2Fb?c", b"other"),
        (b"GET HTTP://other:8080 HTTP/1.1", b"/", b"other:8080"),
        (b"GET http://other?q HTTP/1.1", b"/?q", b"other"),
        (b"OPTIONS * HTTP/1.1", b"*", b"h"),
        (b"GET /a//b/../%2e?x=%00&&y? HTTP/1.1", b"/a//b/../%2e?x=%00&&y?", b"h"),
        (b"GET /\xc3\xa9 HTTP/1.1", b"/\xc3\xa9", b"h"),
    ],
)
def test_targets(start: bytes, target: bytes, host: bytes) -> None:
    head = parse_request_head(request(start=start))
    assert (head.target, head.host) == (target, host)


@pytest.mark.parametrize(
    ("start", "connection", "is_closing"),
    [
        (b"GET / HTTP/1.1", b"", False),
        (b"GET / HTTP/1.1", b"close", True),
        (b"GET / HTTP/1.1", b"Keep-Alive, Close", True),
        (b"GET / HTTP/1.0", b"", True),
        (b"GET / HTTP/1.0", b"keep-alive", False),
    ],
)
def test_persistence(start: bytes, connection: bytes, is_closing: bool) -> None:
    assert parse_request_head(request(b"Connection: " + connection, start=start)).is_closing is is_closing


def test_b1_hop_by_hop_and_nominated_fields_are_dropped() -> None:
    head = parse_request_head(
        request(
            b"Connection: X-Mine, keep-alive", b"X-Mine: 1", b"Keep-Alive: 5", b"TE: trailers", b"Trailer: X",
            b"Proxy-Connection: close", b"Proxy-Authorization: Basic x", b"Upgrade: h2c", b"X-Stays: 1",
        )
    )  # fmt: skip
    assert head.lines == [b"X-Stays: 1"]
    assert head.upgrade is None


def test_framing_and_host_can_not_be_nominated_away() -> None:
    head = parse_request_head(request(b"Connection: content-length, host", b"Content-Length: 3"))
    out = build_request_head(head, b"/", forwarded=b"", with_authorization=False, with_upgrade=False)
    assert b"Content-Length: 3" in out
    assert b"Host: h" in out


def test_b1_forwarding_fields_of_clients_are_replaced() -> None:
    head = parse_request_head(
        request(
            b"X-Forwarded-For: 1.1.1.1", b"X_Forwarded_For: 1.1.1.1", b"Forwarded: for=1.1.1.1",
            b"X-Real-IP: 1.1.1.1",
            b"X-Forwarded-User: root", b"Content_Length: 9",
        )
    )  # fmt: skip
    assert head.lines == []
    lines = forwarded_lines(head, HOP, b"/proxy/services/main/s")
    assert lines == (
        b"X-Forwarded-For: 10.0.0.9\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: h\r\n"
        b"X-Forwarded-Prefix: /proxy/services/main/s\r\n"
    )


def test_forwarding_fields_of_trusted_proxies_count() -> None:
    head = parse_request_head(
        request(
            b"X-Forwarded-For: 1.1.1.1", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: public",
            b"X-Forwarded-Prefix: /ai",
        )
    )  # fmt: skip
    lines = forwarded_lines(head, Hop(b"10.0.0.9", b"http", True), b"/p")
    assert lines == (
        b"X-Forwarded-For: 1.1.1.1, 10.0.0.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: public\r\n"
        b"X-Forwarded-Prefix: /ai/p\r\n"
    )


@pytest.mark.parametrize("with_authorization", [True, False])
def test_b1_authorization_passes_only_where_it_is_the_services_own(with_authorization: bool) -> None:
    head = parse_request_head(request(b"Authorization: Bearer t"))
    out = build_request_head(head, b"/", forwarded=b"", with_authorization=with_authorization, with_upgrade=False)
    assert (b"Authorization: Bearer t" in out) is with_authorization


def test_a_whole_request_head() -> None:
    head = parse_request_head(
        request(b"Transfer-Encoding: Chunked", b"Expect: 100-Continue", b"A: b", start=b"POST /x HTTP/1.1")
    )
    assert head.length == CHUNKED
    out = build_request_head(head, b"/y", forwarded=b"F: 1\r\n", with_authorization=False, with_upgrade=False)
    assert out == (
        b"POST /y HTTP/1.1\r\nHost: h\r\nA: b\r\nTransfer-Encoding: chunked\r\n"
        b"Expect: 100-continue\r\nF: 1\r\n\r\n"
    )


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\nHost: h\n\n", b"GET / HT\rTP", b"\n\n"])
def test_bare_line_ends_are_refused_before_the_head_is_whole(data: bytes) -> None:
    with pytest.raises(BadMessage):
        check_partial_head(data)


def test_a_partial_head_may_end_within_a_line_end() -> None:
    check_partial_head(b"GET / HTTP/1.1\r\nHost: h\r")


def response(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([start, *lines, b"", b""])


@pytest.mark.parametrize(
    "head",
    [
        response(b"Content-Length: 1", b"Content-Length: 2"),
        response(b"Content-Length: 1", b"Transfer-Encoding: chunked"),
        response(b"Transfer-Encoding: gzip"),
        response(b"Transfer-Encoding: chunked", start=b"HTTP/1.0 200 OK"),
        response(b"A: b\nB: c"),
        response(b"A: b\r\n folded"),
        response(start=b"HTTP/1.1 20 OK"),
        response(start=b"ICY 200 OK"),
    ],
)
def test_an_ambiguous_answer_is_refused(head: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_response_head(head)


@pytest.mark.parametrize(
    ("status", "method", "expected"),
    [(200, b"GET", True), (200, b"HEAD", False), (204, b"GET", False), (304, b"GET", False), (100, b"GET", False)],
)
def test_which_answers_have_a_body(status: int, method: bytes, expected: bool) -> None:
    head = parse_response_head(response(b"Content-Length: 5", start=b"HTTP/1.1 %d X" % status))
    assert has_body(head, method) is expected


def test_a_whole_response_head() -> None:
    head = parse_response_head(
        response(
            b"Set-Cookie: a", b"Set-Cookie: b", b"Connection: X-Hop", b"X-Hop: 1", b"Keep-Alive: 5",
            b"Content-Length: 7", start=b"HTTP/1.1 299 So it is",
        )
    )  # fmt: skip
    out = build_response_head(head, is_chunked=False, is_closing=False, minor=1)
    assert out == b"HTTP/1.1 299 So it is\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 7\r\n\r\n"
    assert head.length == 7


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    head = parse_response_head(response(start=b"HTTP/1.0 200"))
    assert (head.length, head.is_closing, head.reason) == (UNTIL_CLOSE, True, b"")
