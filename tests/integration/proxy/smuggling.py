"""Requests whose end two parsers could see in two places, as bytes. In them `@` stands for the service's path.

Each is sent on a connection of its own. A request to `/smuggled` must never reach a backend: it only appears
within what a correct reader takes for a body or refuses.
"""

from __future__ import annotations

from dataclasses import dataclass

PATH = "/proxy/services/main/open"
GET = f"GET {PATH}/smuggled HTTP/1.1\r\nHost: example\r\n\r\n"


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes
    may_pass: bool = False
    """It can be read in one way only, though one of the other proxies refuses it."""


def _post(
    name: str, *fields: str, body: str = "", start: str = "POST @/first HTTP/1.1", may_pass: bool = False
) -> Case:
    head = "\r\n".join([start, "Host: example", *fields, "", ""])
    return _raw(name, head + body, may_pass=may_pass)


def _raw(name: str, data: str, *, may_pass: bool = False) -> Case:
    return Case(name, data.replace("@/", PATH + "/").encode("latin-1"), may_pass)


CHUNKED = "Transfer-Encoding: chunked"
NOTHING = f"0\r\n\r\n{GET}"

CASES = [
    # Content-Length against Transfer-Encoding
    _post("length-and-chunks", f"Content-Length: {len(NOTHING)}", CHUNKED, body=NOTHING),
    _post("chunks-and-length", CHUNKED, "Content-Length: 4", body=f"{len(GET):x}\r\n{GET}\r\n0\r\n\r\n"),
    _post("chunks-in-capitals-and-length", "TRANSFER-ENCODING: CHUNKED", "Content-Length: 3", body=NOTHING),
    _post("unknown-coding", "Transfer-Encoding: xchunked", "Content-Length: 5", body=NOTHING),
    _post("chunked-not-last", "Transfer-Encoding: chunked, identity", body=NOTHING),
    _post("identity-then-chunked", "Transfer-Encoding: identity, chunked", body=NOTHING),
    _post("chunked-twice", "Transfer-Encoding: chunked, chunked", body=NOTHING),
    _post("chunked-and-again-identity", CHUNKED, "Transfer-Encoding: identity", body=NOTHING),
    _post("chunked-in-two-fields", CHUNKED, CHUNKED, body=NOTHING),
    _post("empty-coding", "Transfer-Encoding:", "Content-Length: 5", body=NOTHING),
    _post("quoted-coding", 'Transfer-Encoding: "chunked"', "Content-Length: 5", body=NOTHING),
    _post("space-before-colon", "Transfer-Encoding : chunked", "Content-Length: 5", body=NOTHING),
    _post("tab-before-colon", "Transfer-Encoding\t: chunked", "Content-Length: 5", body=NOTHING),
    _post("vertical-tab-before-coding", "Transfer-Encoding: \x0bchunked", "Content-Length: 5", body=NOTHING),
    _post("coding-with-a-parameter", "Transfer-Encoding: chunked;q=1", "Content-Length: 5", body=NOTHING),
    _post("underscore-in-name", "Transfer_Encoding: chunked", "Content-Length: 0", body="", may_pass=True),
    _post("nul-in-name", "Transfer-Encoding\x00: chunked", "Content-Length: 5", body=NOTHING),
    _post("folded-coding", "Transfer-Encoding:\r\n chunked", "Content-Length: 5", body=NOTHING),
    _post("folded-name", "X: y\r\n Transfer-Encoding: chunked", "Content-Length: 5", body=NOTHING),
    _post("line-of-spaces", "X: y\r\n \r\nTransfer-Encoding: chunked", body=NOTHING),
    _post("coding-after-a-bare-cr", "X: y\rTransfer-Encoding: chunked", "Content-Length: 5", body=NOTHING),
    _post("coding-after-a-bare-lf", "X: y\nTransfer-Encoding: chunked", "Content-Length: 5", body=NOTHING),
    _post("chunks-in-http-1.0", CHUNKED, start="POST @/first HTTP/1.0", body=NOTHING),
    _post("gzip-then-chunked", "Transfer-Encoding: gzip, chunked", body=NOTHING),
    # Content-Length
    _post("two-lengths", "Content-Length: 0", f"Content-Length: {len(GET)}", body=GET),
    _post("two-lengths-in-one", f"Content-Length: 0, {len(GET)}", body=GET),
    _post("same-length-twice", "Content-Length: 2", "Content-Length: 2", body="ab"),
    _post("length-with-plus", "Content-Length: +5", body="abcde" + GET),
    _post("negative-length", "Content-Length: -1", body=GET),
    _post("hexadecimal-length", "Content-Length: 0x5", body="abcde" + GET),
    _post("length-with-underscore", "Content-Length: 1_0", body="a" * 10 + GET),
    _post("length-with-inner-space", "Content-Length: 1 0", body="a" * 10 + GET),
    _post("length-beyond-64-bits", "Content-Length: 18446744073709551621", body="abcde" + GET),
    _post("empty-length", "Content-Length:", body=GET),
    _post("length-in-other-digits", "Content-Length: \xb2", body="ab" + GET),
    # Chunks
    _post("chunk-extension", CHUNKED, body="5;a=b\r\nhello\r\n0\r\n\r\n"),
    _post("chunk-extension-with-bare-lf", CHUNKED, body=f"2;\nxx\r\n{len(GET) + 5:x}\r\n0\r\n\r\n{GET}"),
    _post("chunk-extension-with-bare-cr", CHUNKED, body=f"2;\rxx\r\n0\r\n\r\n{GET}"),
    _post("chunk-size-ended-by-lf", CHUNKED, body=f"5\nhello\r\n0\r\n\r\n{GET}"),
    _post("chunk-size-with-0x", CHUNKED, body=f"0x5\r\nhello\r\n0\r\n\r\n{GET}"),
    _post("chunk-size-with-plus", CHUNKED, body=f"+5\r\nhello\r\n0\r\n\r\n{GET}"),
    _post("negative-chunk-size", CHUNKED, body=f"-5\r\nhello\r\n0\r\n\r\n{GET}"),
    _post("chunk-size-beyond-64-bits", CHUNKED, body=f"10000000000000005\r\nhello\r\n0\r\n\r\n{GET}"),
    _post("empty-chunk-size", CHUNKED, body=f"\r\nhello\r\n0\r\n\r\n{GET}"),
    _post("space-before-chunk-size", CHUNKED, body=f" 5\r\nhello\r\n0\r\n\r\n{GET}"),
    _post("chunk-longer-than-its-size", CHUNKED, body=f"5\r\nhelloXX\r\n0\r\n\r\n{GET}"),
    _post("chunk-without-its-end", CHUNKED, body=f"5\r\nhello0\r\n\r\n{GET}"),
    _post("chunk-ended-by-lf", CHUNKED, body=f"5\r\nhello\n0\r\n\r\n{GET}"),
    _post("nothing-after-last-chunk-but-lf", CHUNKED, body=f"0\n\n{GET}"),
    _post("trailer-with-length", CHUNKED, body=f"0\r\nContent-Length: {len(GET)}\r\n\r\n", may_pass=True),
    _post("malformed-trailer", CHUNKED, body=f"0\r\nX y\r\n\r\n{GET}"),
    # Lines and fields
    _raw("bare-lf-lines", f"GET @/first HTTP/1.1\nHost: example\n\n{GET}"),
    _raw("bare-cr-lines", "GET @/first HTTP/1.1\rHost: example\r\r"),
    _raw("lf-before-the-end", f"GET @/first HTTP/1.1\r\nHost: example\r\n\n{GET}"),
    _raw("nul-in-value", "GET @/first HTTP/1.1\r\nHost: example\r\nX: a\x00b\r\n\r\n"),
    _raw("nul-in-target", "GET @/fir\x00st HTTP/1.1\r\nHost: example\r\n\r\n"),
    _raw("space-in-name", "GET @/first HTTP/1.1\r\nHost: example\r\nX Y: z\r\n\r\n"),
    _raw("no-colon", "GET @/first HTTP/1.1\r\nHost: example\r\nnothing\r\n\r\n"),
    _raw("no-name", "GET @/first HTTP/1.1\r\nHost: example\r\n: nothing\r\n\r\n"),
    _raw("space-before-first-field", "GET @/first HTTP/1.1\r\n Host: example\r\n\r\n"),
    _raw("oversized-head", "GET @/first HTTP/1.1\r\nHost: example\r\nX: " + "a" * 70_000 + "\r\n\r\n"),
    _raw("oversized-target", "GET @/" + "a" * 70_000 + " HTTP/1.1\r\nHost: example\r\n\r\n"),
    # Start lines
    _raw("two-spaces", "GET  @/first HTTP/1.1\r\nHost: example\r\n\r\n"),
    _raw("space-in-target", "GET @/first x HTTP/1.1\r\nHost: example\r\n\r\n"),
    _raw("tab-as-space", "GET\t@/first\tHTTP/1.1\r\nHost: example\r\n\r\n"),
    _raw("no-version", "GET @/first\r\n\r\n"),
    _raw("version-1.10", "GET @/first HTTP/1.10\r\nHost: example\r\n\r\n"),
    _raw("version-2.0", "GET @/first HTTP/2.0\r\nHost: example\r\n\r\n"),
    _raw("version-in-small-letters", "GET @/first http/1.1\r\nHost: example\r\n\r\n"),
    _raw("brackets-in-method", "G(T @/first HTTP/1.1\r\nHost: example\r\n\r\n"),
    _raw("fragment", "GET @/first#frag HTTP/1.1\r\nHost: example\r\n\r\n"),
    _raw("http2-preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    # Hosts
    _raw("two-hosts", "GET @/first HTTP/1.1\r\nHost: example\r\nHost: other\r\n\r\n"),
    _raw("no-host", "GET @/first HTTP/1.1\r\n\r\n"),
    _raw("two-hosts-in-one", "GET @/first HTTP/1.1\r\nHost: example, other\r\n\r\n"),
    _raw("host-with-a-path", "GET @/first HTTP/1.1\r\nHost: example/path\r\n\r\n"),
    _raw("host-with-a-user", "GET @/first HTTP/1.1\r\nHost: user@example\r\n\r\n"),
    _raw("absolute-form", "GET http://example@/first HTTP/1.1\r\nHost: example\r\n\r\n", may_pass=True),
    # Bodies where few expect them, and requests in a row
    _raw("get-with-body", f"GET @/first HTTP/1.1\r\nHost: example\r\nContent-Length: {len(GET)}\r\n\r\n{GET}"),
    _raw("head-with-body", f"HEAD @/first HTTP/1.1\r\nHost: example\r\nContent-Length: {len(GET)}\r\n\r\n{GET}"),
    _raw(
        "get-with-chunks",
        f"GET @/first HTTP/1.1\r\nHost: example\r\n{CHUNKED}\r\n\r\n{len(GET):x}\r\n{GET}\r\n0\r\n\r\n",
    ),
    _post("expectation", "Expect: 100-continue", f"Content-Length: {len(GET)}", body=GET),
    _post("two-in-a-row", "Content-Length: 2", body="abGET @/second HTTP/1.1\r\nHost: example\r\n\r\n"),
    _post("empty-line-between", "Content-Length: 2", body="ab\r\nGET @/second HTTP/1.1\r\nHost: example\r\n\r\n"),
    # Upgrades that the backend does not take
    _raw(
        "websocket-refused",
        "GET @/first HTTP/1.1\r\nHost: example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    ),
    _raw(
        "h2c",
        "GET @/first HTTP/1.1\r\nHost: example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        "HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    ),
    _raw("host-nominated-as-hop", "GET @/first HTTP/1.1\r\nHost: example\r\nConnection: close, Host\r\n\r\n"),
    _post("length-nominated-as-hop", "Connection: Content-Length", f"Content-Length: {len(GET)}", body=GET),
    # Paths
    _raw("encoded-slash", "GET @/a%2Fb HTTP/1.1\r\nHost: example\r\n\r\n"),
    _raw("dots", "GET @/a/../b HTTP/1.1\r\nHost: example\r\n\r\n"),
    _raw("encoded-dots", "GET @/%2e%2e/b HTTP/1.1\r\nHost: example\r\n\r\n", may_pass=True),
    _raw("too-many-dots", "GET @/../../../../../etc/passwd HTTP/1.1\r\nHost: example\r\n\r\n", may_pass=True),
    _raw("encoded-nul", "GET @/a%00b HTTP/1.1\r\nHost: example\r\n\r\n", may_pass=True),
    _raw("bad-escape", "GET @/a%zz HTTP/1.1\r\nHost: example\r\n\r\n", may_pass=True),
    _raw("encoded-line-end", "GET @/a%0d%0aX:%20y HTTP/1.1\r\nHost: example\r\n\r\n"),
    _raw("slashes", "GET @//a///b HTTP/1.1\r\nHost: example\r\n\r\n"),
    _raw("backslash", "GET @/a\\..\\b HTTP/1.1\r\nHost: example\r\n\r\n"),
]
