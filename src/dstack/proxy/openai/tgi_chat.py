"""Chat completions of models behind the protocol of Text Generation Inference."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from dstack.proxy.openai.client import JSON, Client
from dstack.proxy.openai.errors import ApiError, with_both_keys
from dstack.proxy.openai.events import DONE, EventReader, EventTooLarge, event
from dstack.proxy.openai.passing import NO_BUFFERING, pass_error, read, unless_cut
from dstack.proxy.openai.rendering import Renderer
from dstack.proxy.openai.tgi import BadAnswer, ChatRequest, StreamedCompletion, completion, read_request
from dstack.proxy.openai.upstream import AnswerCut, OpenUpstream, UpstreamAnswer, UpstreamRequest
from dstack.proxy.repo import Model

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""`decoder_input_details` tells each token of the prompt."""


async def chat(
    client: Client, open_upstream: OpenUpstream, model: Model, body: Mapping[str, Any], renderer: Renderer
) -> None:
    """Raises `ApiError`; `AnswerCut` once the answer has begun."""
    request = read_request(body, model.eos_token)
    asked = {
        "inputs": await _prompt(client, open_upstream, model, request, renderer),
        "parameters": request.parameters,
    }
    path = b"/generate_stream" if request.is_streamed else b"/generate"
    async with open_upstream(model, _post(client, path, asked)) as answer:
        if answer.status != 200:
            await pass_error(client, answer)
        elif request.is_streamed:
            headers = [(b"content-type", b"text/event-stream"), NO_BUFFERING]
            await client.stream(200, headers, _chunks(client, answer, _streamed(request)))
        else:
            whole = completion_of(await read(answer, MAX_ANSWER_BYTES), request)
            await client.answer(200, [JSON], orjson.dumps(whole))


def _post(client: Client, path: bytes, body: Mapping[str, Any]) -> UpstreamRequest:
    about_body = (b"content-type", b"content-encoding", b"accept")
    headers = [(name, value) for name, value in client.headers if name not in about_body]
    return UpstreamRequest(b"POST", path, [*headers, JSON], orjson.dumps(body), client.hop)


async def _prompt(
    client: Client, open_upstream: OpenUpstream, model: Model, request: ChatRequest, renderer: Renderer
) -> str:
    """By the template of the configuration, else by the model's own, which the replica has."""
    if model.chat_template is None:
        return await _prompt_by_replica(client, open_upstream, model, request)
    variables = {"messages": request.messages, "tools": request.tools}
    tokens = {"bos_token": "", "eos_token": model.eos_token or ""}
    return await renderer.render(model.chat_template, {**variables, **tokens})


async def _prompt_by_replica(
    client: Client, open_upstream: OpenUpstream, model: Model, request: ChatRequest
) -> str:
    asked: dict[str, Any] = {"model": request.model, "messages": request.messages}
    if request.tools:
        asked["tools"] = request.tools
    async with open_upstream(model, _post(client, b"/chat_tokenize", asked)) as answer:
        body = await read(answer, MAX_ANSWER_BYTES)
        if answer.status in (404, 405):
            text = (
                f"Model {model.name!r} has no `chat_template`, and its replica does not render its own: give one"
            )
            raise ApiError(502, text)
        if answer.status != 200:
            said = orjson.loads(with_both_keys(answer.status, body))
            raise ApiError(answer.status, str(said["error"].get("message")))
    try:
        return str(orjson.loads(body)["templated_text"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ApiError(502, "The model's answer to /chat_tokenize can't be read") from None


def _streamed(request: ChatRequest) -> StreamedCompletion:
    return StreamedCompletion(request, id=_new_id(), created=int(time.time()))


def completion_of(body: bytes, request: ChatRequest) -> dict[str, Any]:
    """Raises `ApiError` (502)."""
    try:
        return completion(orjson.loads(body), request, id=_new_id(), created=int(time.time()))
    except (orjson.JSONDecodeError, BadAnswer) as error:
        raise ApiError(502, f"The model's answer can't be read: {error}") from None


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


async def _chunks(client: Client, answer: UpstreamAnswer, streamed: StreamedCompletion) -> AsyncIterator[bytes]:
    """Raises `ApiError` before the first chunk, `AnswerCut` later."""
    reader = EventReader()
    try:
        async for piece in unless_cut(client, answer):
            for data in reader.feed(piece):
                said = _event(client, data)
                chunks = [event(chunk) for chunk in streamed.feed(said)]
                if chunks:
                    yield b"".join(chunks)
    except (EventTooLarge, orjson.JSONDecodeError, BadAnswer) as error:
        raise _failure(client, 502, f"its answer can't be read: {error}") from None
    if not streamed.is_finished:
        raise _failure(client, 502, "its answer ended too early")
    yield DONE


def _event(client: Client, data: bytes) -> Any:
    """TGI tells errors within a stream, too."""
    said = orjson.loads(data)
    if isinstance(said, dict) and "error" in said:
        raise _failure(client, 500, str(said["error"]))
    return said


def _failure(client: Client, status: int, text: str) -> Exception:
    return AnswerCut(text) if client.has_begun_answer else ApiError(status, f"The model failed: {text}")
