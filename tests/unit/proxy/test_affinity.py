"""What ties a request to a replica."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.proxy.affinity import MAX_BODY_BYTES, cookie_key, header_key, prompt_key, set_cookie
from dstack.proxy.headers import Hop, parse_request_head


def says(*texts: str) -> list[dict[str, str]]:
    """A conversation: what the system says, then user and assistant in turn."""
    roles = ["system", *["user", "assistant"] * len(texts)]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def key(length: int = 100, **fields: Any) -> bytes | None:
    return prompt_key(json.dumps({"model": "m", **fields}).encode(), length)


def test_a_conversation_keeps_its_key_as_it_grows() -> None:
    first = key(messages=says("Be brief", "Hi"))
    assert first is not None
    assert key(messages=says("Be brief", "Hi", "Hello", "How are you?"), temperature=1) == first
    assert key(messages=says("Be brief", "Hello")) != first
    assert key(messages=says("Be long", "Hi")) != first


def test_only_the_beginning_counts() -> None:
    assert key(10, prompt="x" * 10 + "a") == key(10, prompt="x" * 10 + "b")
    assert key(11, prompt="x" * 10 + "a") != key(11, prompt="x" * 10 + "b")
    shared = "You are a helpful assistant. " * 4
    assert key(50, messages=says(shared, "a")) == key(50, messages=says(shared, "b"))


def test_other_parts_of_the_api_have_prompts_too() -> None:
    def of(name: str, value: Any) -> bytes | None:
        return prompt_key(json.dumps({name: value}).encode(), 100)

    for name in ("prompt", "input", "inputs"):
        assert of(name, "Once") == of(name, "Once") != of(name, "Twice")
        assert of(name, ["Once", "more"]) != of(name, ["Once", "less"])
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert key(messages=parts) not in (None, key(messages=says("a")))


NO_PROMPTS = [b"", b"{}", b'{"model": "m"}', b"\xff\xfe", b'{"messages": []}', b'{"prompt": ""}']


@pytest.mark.parametrize("body", NO_PROMPTS)
def test_without_a_prompt_there_is_no_key(body: bytes) -> None:
    assert prompt_key(body, 100) is None


def test_the_rest_of_a_long_body_does_not_matter() -> None:
    messages = says("Be brief", "Hi", "x" * 2 * MAX_BODY_BYTES)
    whole = json.dumps({"messages": messages}).encode()
    assert (
        prompt_key(whole[:MAX_BODY_BYTES], 100) == prompt_key(whole, 100) == key(messages=says("Be brief", "Hi"))
    )
    long = json.dumps({"messages": says("y" * 2 * MAX_BODY_BYTES)}).encode()
    assert prompt_key(long[:MAX_BODY_BYTES], 100) == prompt_key(long, 100) is not None


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_are_taken(body: bytes, length: int) -> None:
    prompt_key(body, length)
    prompt_key(b'{"messages": [' + body, length)
    prompt_key(b'{"messages": [' + b"[" * 5000 + body, length)


def test_sessions() -> None:
    head = b"GET / HTTP/1.1\r\nHost: h\r\nX-Session:  s 1 \r\nCookie: a=1; tied=abc; b\r\ncookie:other=x=y\r\n\r\n"
    request = parse_request_head(head)
    assert header_key(request, b"x-session") == b"s 1"
    assert header_key(request, b"x-other") is None
    assert [cookie_key(request, name) for name in (b"tied", b"other", b"b", b"none")] == [
        b"abc",
        b"x=y",
        b"",
        None,
    ]


def test_cookies_are_for_the_service_alone() -> None:
    line = set_cookie(b"tied", b"abc", b"/proxy/services/main/web", Hop(b"", b"https", False))
    assert line == b"Set-Cookie: tied=abc; Path=/proxy/services/main/web/; HttpOnly; SameSite=Lax; Secure"
    assert not set_cookie(b"tied", b"abc", b"", Hop(b"", b"http", False)).endswith(b"Secure")
