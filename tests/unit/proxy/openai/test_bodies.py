"""Which model a request is for."""

from __future__ import annotations

import orjson
import pytest

from dstack.proxy.openai.bodies import model_of
from dstack.proxy.openai.errors import ApiError, with_both_keys

JSON = b"application/json"
FORM = b"multipart/form-data; boundary=xyz"


def form(*parts: bytes) -> bytes:
    return b"".join(b"--xyz\r\n" + part + b"\r\n" for part in parts) + b"--xyz--\r\n"


def part(name: bytes, value: bytes, *, more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + value


FILE = part(
    b"file", b'\r\n--xy name="model"\r\n\r\nnot this\r\n', more=b'; filename="a"\r\nContent-Type: audio/wav'
)
NAMED = [
    (JSON, b'{"model": "a/b", "input": 1}', b"", "a/b"),
    (b"", b'{"model": "x"}', b"model=y", "x"),
    (b"", b"", b"limit=1&model=meta%2Fllama", "meta/llama"),
    (FORM, form(FILE, part(b"model", b"whisper")), b"", "whisper"),
    (FORM, form(part(b"model", b"whisper"), FILE), b"", "whisper"),
    (b'Multipart/Form-Data; boundary="xyz"', form(part(b"model", b"w")), b"", "w"),
]


@pytest.mark.parametrize(("content_type", "body", "query", "name"), NAMED)
def test_a_model_is_named(content_type: bytes, body: bytes, query: bytes, name: str) -> None:
    assert model_of(content_type, body, query) == name


UNNAMED = [
    (JSON, b"", b""),
    (JSON, b"{}", b"model=x"),
    (JSON, b'{"model": ""}', b""),
    (JSON, b'{"model": ["x"]}', b""),
    (JSON, b'"model"', b""),
    (JSON, b'{"model": "x"', b""),
    (JSON, b"\xff", b""),
    (FORM, form(FILE), b""),
    (FORM, b"--xyz", b""),
    (FORM, form(part(b"model", b"x"))[:-9], b""),
    (FORM, form(part(b"model2", b"x")), b""),
    (b"multipart/form-data", form(part(b"model", b"x")), b""),
]


@pytest.mark.parametrize(("content_type", "body", "query"), UNNAMED)
def test_no_model_is_named(content_type: bytes, body: bytes, query: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        model_of(content_type, body, query)
    assert caught.value.status == 422


THEIRS = [
    (b"oops", "oops", "oops"),
    (b"", "", ""),
    (b'{"error": "short"}', '{"error": "short"}', "short"),
    (b'{"object": "error", "message": "m"}', '{"object": "error", "message": "m"}', "m"),
    (b'{"detail": "d"}', "d", "d"),
    (b'{"error": {"message": "whole", "code": 7}}', '{"error": {"message": "whole", "code": 7}}', "whole"),
    (b'["x"]', '["x"]', '["x"]'),
]


@pytest.mark.parametrize(("body", "detail", "message"), THEIRS)
def test_errors_of_replicas_get_both_keys(body: bytes, detail: str, message: str) -> None:
    said = orjson.loads(with_both_keys(500, body))
    assert (said["detail"], said["error"]["message"]) == (detail, message)
