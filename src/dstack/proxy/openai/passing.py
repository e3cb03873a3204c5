"""Models behind OpenAI's own protocol: requests and answers pass as they come (better B9)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from dstack.proxy.openai.client import JSON, Client
from dstack.proxy.openai.errors import ApiError, with_both_keys
from dstack.proxy.openai.upstream import AnswerCut, OpenUpstream, UpstreamAnswer, UpstreamRequest
from dstack.proxy.repo import Model

MAX_ERROR_BYTES = 1024 * 1024
"""Of a replica's error; beyond it the rest is left out."""
NO_BUFFERING = (b"x-accel-buffering", b"no")
"""For a reverse proxy in front of us."""


async def pass_on(client: Client, open_upstream: OpenUpstream, model: Model, path: bytes, body: bytes) -> None:
    """`path` is relative to the API, as it came. Raises `ApiError`; `AnswerCut` once the answer has begun."""
    assert model.prefix is not None
    target = b"/%b/%b" % (model.prefix.strip("/").encode(), path) if model.prefix.strip("/") else b"/" + path
    if client.query:
        target += b"?" + client.query
    request = UpstreamRequest(client.method.encode(), target, client.headers, body, client.hop)
    async with open_upstream(model, request) as answer:
        if answer.status >= 400:
            await pass_error(client, answer)
            return
        headers = list(answer.headers)
        if is_event_stream(answer):
            headers.append(NO_BUFFERING)
        await client.stream(answer.status, headers, unless_cut(client, answer))


async def unless_cut(client: Client, answer: UpstreamAnswer) -> AsyncIterator[bytes]:
    """The body. Raises `ApiError` where the replica goes away before its first byte."""
    try:
        async for piece in answer.pieces():
            yield piece
    except AnswerCut as error:
        if client.has_begun_answer:
            raise
        raise ApiError(502, f"The model failed: {error}") from None


def is_event_stream(answer: UpstreamAnswer) -> bool:
    return any(key == b"content-type" and value.startswith(b"text/event-stream") for key, value in answer.headers)


async def pass_error(client: Client, answer: UpstreamAnswer) -> None:
    """With its status and headers; the body gets what it lacks of `detail` and `error`."""
    body = await read(answer, MAX_ERROR_BYTES)
    headers = [(name, value) for name, value in answer.headers if name != b"content-type"]
    await client.answer(answer.status, [JSON, *headers], with_both_keys(answer.status, body))


async def read(answer: UpstreamAnswer, max_bytes: int) -> bytes:
    """The first `max_bytes` of a body. Raises `ApiError` where the replica goes away before."""
    pieces, length = [], 0
    try:
        async for piece in answer.pieces():
            pieces.append(piece)
            length += len(piece)
            if length >= max_bytes:
                break
    except AnswerCut as error:
        raise ApiError(502, f"The model failed: {error}") from None
    return b"".join(pieces)[:max_bytes]
