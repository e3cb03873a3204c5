"""Heads of HTTP/1 messages: parsing, framing, and what a proxy may pass on (RFC 9110, 9112). Pure.

Strict on purpose: what two parsers could read in two ways is refused, never repaired, so that a replica and we
never disagree on where a message ends. Field lines that pass are passed as the bytes that came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

MAX_HEAD_BYTES = 65536
CHUNKED = -1
"""As a body length: framed by chunks."""
UNTIL_CLOSE = -2
"""As a response's body length: it ends with the connection."""

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELDS = rb"((?:" + TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
_REQUEST = re.compile(rb"(" + TOKEN + rb") ([\x21\x22\x24-\x7e\x80-\xff]+) HTTP/1\.([01])\r\n" + _FIELDS)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})( [\t\x20-\x7e\x80-\xff]*)?\r\n" + _FIELDS)
_LONE_CR_OR_LF = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE | re.DOTALL)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_HOST = re.compile(rb"[A-Za-z0-9._~\-!$&'()*+,;=%:\[\]]*")

_HOP_BY_HOP = frozenset((b"keep-alive", b"proxy-connection", b"te", b"trailer", b"proxy-authorization"))
_REQUEST_OWN = _HOP_BY_HOP | {
    b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect", b"authorization",
}  # fmt: skip
_RESPONSE_OWN = frozenset(
    (b"keep-alive", b"proxy-connection", b"te", b"trailer", b"proxy-authenticate",
     b"content-length", b"transfer-encoding", b"connection", b"upgrade")
)  # fmt: skip
WRITING = frozenset((b"POST", b"PUT", b"PATCH"))
"""Methods whose requests tell a length of 0 too."""
_FORWARDING = (b"x-forwarded", b"x-real-ip", b"x-original-")


class BadMessage(ValueError):
    """The peer's message can't be read in exactly one way; `status` is the answer to a client that sent it."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class RequestHead:
    method: bytes
    target: bytes
    """In origin form, as it came."""
    minor: int
    """Of the version: 0 or 1."""
    host: bytes | None
    length: int
    """Of the body in bytes, or `CHUNKED`."""
    lines: list[bytes]
    """The end-to-end fields that are not named here, as they came, without line ends."""
    authorization: bytes | None
    is_closing: bool
    """The client wants (or needs) the connection closed after the answer."""
    upgrade: bytes | None
    """Lower-case protocol the client asks to switch to."""
    expects_continue: bool
    forwarding: dict[bytes, bytes] | None
    """`X-Forwarded-*` and the like that the client sent, by lower-case name."""
    tails: dict[tuple[bytes, bool, bool], bytes] = field(default_factory=dict)
    """What was built of the fields (`request_tail`), for the repetitions of this head."""


@dataclass(slots=True)
class ResponseHead:
    status: int
    reason: bytes
    """With its leading space; empty when none came."""
    length: int
    """Of the body in bytes, `CHUNKED` or `UNTIL_CLOSE`, as the fields say (the method is not known here)."""
    has_length: bool
    """`length` came as a Content-Length field."""
    lines: list[bytes]
    is_closing: bool
    upgrade: bytes | None
    built: dict[tuple[bool, bool, int], bytes] = field(default_factory=dict)
    """What `build_response_head` made of it, by its other arguments."""
    opened: ResponseHead | None = None
    """The same for browsers of any site, once it was asked for."""


def check_partial_head(data: bytes) -> None:
    """Raises `BadMessage` where the start of a head can't become a good one any more."""
    if len(data) > MAX_HEAD_BYTES:
        raise BadMessage(f"The request's head is larger than {MAX_HEAD_BYTES} bytes", 431)
    if _LONE_CR_OR_LF.search(data):
        raise BadMessage("A line of the request's head does not end with CR LF")


def parse_request_head(head: bytes) -> RequestHead:
    """`head` ends with its empty line. Raises `BadMessage`."""
    if len(head) > MAX_HEAD_BYTES:
        raise BadMessage(f"The request's head is larger than {MAX_HEAD_BYTES} bytes", 431)
    match = _REQUEST.fullmatch(head)
    if match is None:
        raise BadMessage("The request's head is malformed")
    method, target, minor, block = match.groups()
    own: dict[bytes, list[bytes]] = {}
    lines: list[bytes] = []
    forwarding: dict[bytes, bytes] | None = None
    for line in block.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _REQUEST_OWN:
            own.setdefault(name, []).append(value.strip(b" \t"))
        elif _is_forwarding(name):
            forwarding = forwarding or {}
            earlier = forwarding.get(name)
            value = value.strip(b" \t")
            forwarding[name] = value if earlier is None else earlier + b", " + value
        else:
            lines.append(line)
    return _request(method, target, 1 if minor == b"1" else 0, own, lines, forwarding)


def _request(
    method: bytes,
    target: bytes,
    minor: int,
    own: dict[bytes, list[bytes]],
    lines: list[bytes],
    forwarding: dict[bytes, bytes] | None,
) -> RequestHead:
    target, host = _target_and_host(method, target, minor, own.get(b"host"))
    length = _request_length(own, minor)
    is_closing = minor == 0
    upgrade: bytes | None = None
    if b"connection" in own:
        options = _options(own[b"connection"])
        is_closing = b"close" in options or (minor == 0 and b"keep-alive" not in options)
        if b"upgrade" in options and minor == 1 and b"upgrade" in own:
            upgrade = b", ".join(own[b"upgrade"]).lower()
        lines = without_nominated(lines, options)
    return RequestHead(
        method=method,
        target=target,
        minor=minor,
        host=host,
        length=length,
        lines=lines,
        authorization=_authorization(own.get(b"authorization")),
        is_closing=is_closing,
        upgrade=upgrade,
        expects_continue=b"expect" in own and minor == 1 and _expects_continue(own[b"expect"]),
        forwarding=forwarding,
    )


def _target_and_host(
    method: bytes, target: bytes, minor: int, hosts: list[bytes] | None
) -> tuple[bytes, bytes | None]:
    if hosts is None:
        if minor == 1:
            raise BadMessage("A Host header is missing")
        host = None
    elif len(hosts) > 1:
        raise BadMessage("More than one Host header")
    else:
        host = hosts[0]
        if _HOST.fullmatch(host) is None:
            raise BadMessage("The Host header is malformed")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS") or method == b"CONNECT":
        return target, host
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or _HOST.fullmatch(absolute[1]) is None:
        raise BadMessage("The request target is neither a path nor an http URL")
    path = absolute[2] or b"/"
    return (path if path.startswith(b"/") else b"/" + path), absolute[1]


def _request_length(own: dict[bytes, list[bytes]], minor: int) -> int:
    lengths = own.get(b"content-length")
    codings = own.get(b"transfer-encoding")
    if codings is not None:
        if lengths is not None:
            raise BadMessage("Both Content-Length and Transfer-Encoding are given")
        if minor == 0:
            raise BadMessage("Transfer-Encoding is given in an HTTP/1.0 request")
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise BadMessage("The only transfer coding understood is chunked", 501)
        return CHUNKED
    return 0 if lengths is None else _content_length(lengths)


def _content_length(values: list[bytes]) -> int:
    if len(values) > 1:
        raise BadMessage("More than one Content-Length header")
    if _LENGTH.fullmatch(values[0]) is None:
        raise BadMessage("The Content-Length is not a number of bytes")
    return int(values[0])


def _authorization(values: list[bytes] | None) -> bytes | None:
    if values is None:
        return None
    if len(values) > 1:
        raise BadMessage("More than one Authorization header")
    return values[0]


def _expects_continue(values: list[bytes]) -> bool:
    if [value.lower() for value in values] != [b"100-continue"]:
        raise BadMessage("The only expectation understood is 100-continue", 417)
    return True


def _options(values: list[bytes]) -> set[bytes]:
    """Of Connection headers, in lower case."""
    return {option.strip(b" \t").lower() for value in values for option in value.split(b",")}


_NAMING_NO_FIELD = frozenset((b"", b"close", b"keep-alive", b"upgrade"))


def without_nominated(lines: list[bytes], options: set[bytes]) -> list[bytes]:
    """Leaves out the fields that a Connection header names as meant for this hop alone."""
    nominated = options - _NAMING_NO_FIELD
    if not nominated:
        return lines
    return [line for line in lines if line.partition(b":")[0].lower() not in nominated]


def _is_forwarding(name: bytes) -> bool:
    """Also spelt with underscores, which some backends read as the same name."""
    if b"_" in name:
        name = name.replace(b"_", b"-")
        if name in _REQUEST_OWN:
            return True
    return name.startswith(_FORWARDING) or name == b"forwarded"


def parse_response_head(head: bytes) -> ResponseHead:
    """`head` ends with its empty line. Raises `BadMessage`."""
    match = _RESPONSE.fullmatch(head)
    if match is None:
        raise BadMessage("The replica's answer has a malformed head")
    minor, status, reason, block = match.groups()
    lines: list[bytes] = []
    own: dict[bytes, list[bytes]] = {}
    for line in block.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _RESPONSE_OWN:
            own.setdefault(name, []).append(value.strip(b" \t"))
        else:
            lines.append(line)
    is_closing = minor == b"0"
    upgrade: bytes | None = None
    if b"connection" in own:
        options = _options(own[b"connection"])
        is_closing = b"close" in options or (minor == b"0" and b"keep-alive" not in options)
        lines = without_nominated(lines, options)
        if b"upgrade" in options and b"upgrade" in own:
            upgrade = b", ".join(own[b"upgrade"])
    length = _response_length(own, minor)
    return ResponseHead(int(status), reason or b"", length, b"content-length" in own, lines, is_closing, upgrade)


def _response_length(own: dict[bytes, list[bytes]], minor: bytes) -> int:
    lengths = own.get(b"content-length")
    codings = own.get(b"transfer-encoding")
    if codings is not None:
        if lengths is not None or minor == b"0" or [coding.lower() for coding in codings] != [b"chunked"]:
            raise BadMessage("The replica's answer has an ambiguous length")
        return CHUNKED
    return UNTIL_CLOSE if lengths is None else _content_length(lengths)


@dataclass(frozen=True, slots=True)
class Hop:
    """What a replica is told about the client's side of this hop."""

    address: bytes
    """Of the client."""
    scheme: bytes
    is_trusted: bool
    """The client is itself a proxy whose `X-Forwarded-*` count."""


def forwarded_lines(request: RequestHead, hop: Hop, prefix: bytes) -> bytes:
    """The `X-Forwarded-*` lines for a replica. `prefix` is what was cut off the path, or empty."""
    address, scheme, host = hop.address, hop.scheme, request.host or b""
    if hop.is_trusted and request.forwarding:
        sent = request.forwarding
        if b"x-forwarded-for" in sent:
            address = sent[b"x-forwarded-for"] + b", " + address
        scheme = sent.get(b"x-forwarded-proto", scheme)
        host = sent.get(b"x-forwarded-host", host)
        prefix = sent.get(b"x-forwarded-prefix", b"") + prefix
    lines = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\n" % (address, scheme, host)
    return lines + b"X-Forwarded-Prefix: %b\r\n" % prefix if prefix else lines


def build_request_head(
    request: RequestHead, target: bytes, *, forwarded: bytes, with_authorization: bool, with_upgrade: bool
) -> bytes:
    """What the replica gets: HTTP/1.1, the fields as they came, our own framing and forwarding fields."""
    return b"%b %b%b" % (
        request.method,
        target,
        build_request_tail(
            request, forwarded=forwarded, with_authorization=with_authorization, with_upgrade=with_upgrade
        ),
    )


def build_request_tail(
    request: RequestHead, *, forwarded: bytes, with_authorization: bool, with_upgrade: bool
) -> bytes:
    """`build_request_head` without method and target."""
    parts = [b" HTTP/1.1\r\nHost: %b" % (request.host or b"")]
    parts += request.lines
    if request.authorization is not None and with_authorization:
        parts.append(b"Authorization: " + request.authorization)
    if request.length == CHUNKED:
        parts.append(b"Transfer-Encoding: chunked")
    elif request.length or request.method in WRITING:
        parts.append(b"Content-Length: %d" % request.length)
    if request.expects_continue:
        parts.append(b"Expect: 100-continue")
    if with_upgrade and request.upgrade is not None:
        parts.append(b"Connection: Upgrade\r\nUpgrade: " + request.upgrade)
    parts.append(forwarded)
    return b"\r\n".join(parts) + b"\r\n"


CORS_LINES = (b"Access-Control-Allow-Origin: *", b"Access-Control-Expose-Headers: *")
PREFLIGHT_LINES = (
    b"Access-Control-Allow-Origin: *",
    b"Access-Control-Allow-Headers: *",
    b"Access-Control-Allow-Methods: GET, POST, PUT, DELETE, PATCH, OPTIONS, HEAD",
    b"Access-Control-Max-Age: 600",
)


def opened(response: ResponseHead) -> ResponseHead:
    """With the fields that let browsers of any site read it, instead of the replica's own."""
    if response.opened is None:
        kept = [line for line in response.lines if line[:15].lower() != b"access-control-"]
        response.opened = replace(response, lines=[*kept, *CORS_LINES], built={})
    return response.opened


def with_line(response: ResponseHead, line: bytes) -> ResponseHead:
    """With one more field."""
    return replace(response, lines=[*response.lines, line], built={})


def has_body(response: ResponseHead, method: bytes) -> bool:
    status = response.status
    return not (method == b"HEAD" or status == 204 or status == 304 or status < 200)


def build_response_head(response: ResponseHead, *, is_chunked: bool, is_closing: bool, minor: int) -> bytes:
    """What the client gets. `minor` is the version of its request."""
    parts = [b"HTTP/1.1 %d%b" % (response.status, response.reason or b" ")]
    parts += response.lines
    if is_chunked:
        parts.append(b"Transfer-Encoding: chunked")
    elif response.has_length:
        parts.append(b"Content-Length: %d" % response.length)
    if response.status == 101 and response.upgrade is not None:
        parts.append(b"Connection: Upgrade\r\nUpgrade: " + response.upgrade)
    elif is_closing:
        parts.append(b"Connection: close")
    elif minor == 0:
        parts.append(b"Connection: keep-alive")
    parts.append(b"\r\n")
    return b"\r\n".join(parts)
