"""Which local ports are wished for, and how URLs show them."""

from __future__ import annotations

import pytest

from dstack.api.errors import AttachError
from dstack.api.ssh.ports import PortWish, UrlRewriter, override, wishes_of

WISHES = [PortWish(8000), PortWish(9000, 9001)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], WISHES),
        (["8000"], [PortWish(8000, 8000), PortWish(9000, 9001)]),
        (["80:8000", "*:9000"], [PortWish(8000, 80), PortWish(9000, None)]),
    ],
)
def test_flags(flags: list[str], expected: list[PortWish]) -> None:
    assert override(WISHES, flags) == expected


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("1:7000", "The job has no port 7000; its ports: 8000, 9000"),
        ("x:8000", "'x:8000' is not a port: write -p 8080 or -p 80:8080"),
        ("8000:", "'8000:' is not a port: write -p 8080 or -p 80:8080"),
    ],
)
def test_flags_that_fit_nothing(flag: str, message: str) -> None:
    with pytest.raises(AttachError) as raised:
        override(WISHES, [flag])
    assert str(raised.value) == message


def test_wishes_of_a_job() -> None:
    apps = [{"port": 8000, "map_to_port": None}, {"port": 9000, "map_to_port": 9001}]
    assert wishes_of({"app_specs": apps}) == WISHES
    assert wishes_of({"app_specs": None, "service_port": 80}) == [PortWish(80)]
    assert wishes_of({"app_specs": apps, "service_port": 8000}) == WISHES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"on http://0.0.0.0:8000/x?y=1", b"on http://localhost:18000/x?y=1"),
        (b"ws://127.0.0.1:8000 https://[::]:8000", b"ws://localhost:18000 https://localhost:18000"),
        (b"http://localhost:80", b"http://localhost:1080"),
        (b"http://localhost:8001 http://localhost:80001", b"http://localhost:8001 http://localhost:80001"),
        (b"http://example.com:8000", b"http://example.com:8000"),
        (b"\xff http://localhost:8000\xff", b"\xff http://localhost:18000\xff"),
    ],
)
def test_urls(text: bytes, expected: bytes) -> None:
    assert UrlRewriter({8000: 18000, 80: 1080}, "localhost").rewrite(text) == expected


def test_no_ports_no_change() -> None:
    assert UrlRewriter({}, "localhost").rewrite(b"http://localhost:1") == b"http://localhost:1"


def test_an_address_is_put_in_brackets() -> None:
    assert UrlRewriter({80: 81}, "::1").rewrite(b"http://localhost:80") == b"http://[::1]:81"
