"""`<prefix><project>/…`: an ASGI application. Every request needs the token of a member of the project."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from urllib.parse import unquote

import orjson

from dstack.core.errors import DstackError, TooManyAttempts
from dstack.proxy.auth import ProxyAuth, bearer_token
from dstack.proxy.headers import PREFLIGHT_LINES
from dstack.proxy.openai.bodies import model_of, read_json
from dstack.proxy.openai.client import JSON, Client, ClientGone, Receive, Scope, Send
from dstack.proxy.openai.errors import ApiError, describe
from dstack.proxy.openai.events import event
from dstack.proxy.openai.passing import pass_on
from dstack.proxy.openai.rendering import Renderer
from dstack.proxy.openai.tgi_chat import chat
from dstack.proxy.openai.upstream import AnswerCut, OpenUpstream
from dstack.proxy.repo import Model, ModelRepo

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Bodies are read before it is known where they go."""
MAX_BODY_SILENCE = 60.0
"""Seconds without a byte of the request's body."""
CHAT = b"chat/completions"

logger = logging.getLogger(__name__)


class ModelsApp:
    """`close()` it at the end.

    `prefix`: of the path, before the project's name. `max_body_bytes`: at most `MAX_BODY_BYTES`; 0: just that.
    """

    def __init__(
        self,
        repo: ModelRepo,
        auth: ProxyAuth,
        open_upstream: OpenUpstream,
        *,
        prefix: str = "/proxy/models/",
        max_body_bytes: int = 0,
        is_trusted: Callable[[str], bool] = lambda _address: False,
    ) -> None:
        self._repo = repo
        self._auth = auth
        self._open = open_upstream
        self._prefix = prefix.encode()
        self._max_body_bytes = min(max_body_bytes or MAX_BODY_BYTES, MAX_BODY_BYTES)
        self._is_trusted = is_trusted
        self._renderer = Renderer()

    async def close(self) -> None:
        await self._renderer.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        client = Client(scope, receive, send, is_trusted=self._is_trusted)
        project, _, path = scope["raw_path"].removeprefix(self._prefix).partition(b"/")
        try:
            await self._answer(client, unquote(project.decode("latin-1")), path)
        except ClientGone:
            pass
        except ApiError as error:
            await client.answer_error(error)
        except DstackError as error:
            logger.error("models of %s: %s", project.decode("latin-1"), error.detail)
            await client.answer_error(ApiError(503 if error.retryable else 500, str(error)))
        except AnswerCut as error:
            text = f"The model failed: {error}"
            await client.cut(b": %b\n\n" % text.encode() + event({"error": describe(502, text), "detail": text}))

    async def _answer(self, client: Client, project: str, path: bytes) -> None:
        if client.method == "OPTIONS":
            fields = (line.partition(b": ") for line in PREFLIGHT_LINES)
            await client.preflight([(name.lower(), value) for name, _, value in fields])
            return
        await self._let_in(client, project)
        if path == b"models" or path.startswith(b"models/"):
            await self._answer_models(client, project, path)
            return
        body = await client.read_body(max_bytes=self._max_body_bytes, max_silence=MAX_BODY_SILENCE)
        name = model_of(client.header(b"content-type") or b"", body, client.query)
        answering = asyncio.ensure_future(self._ask_model(client, await self._model(project, name), path, body))
        await _unless_gone(client, answering)

    async def _let_in(self, client: Client, project: str) -> None:
        token = bearer_token(client.header(b"authorization"))
        try:
            allowed = token is not None and self._auth.is_allowed(project, token, client.hop.address.decode())
            is_allowed = allowed if isinstance(allowed, bool) else await allowed
        except TooManyAttempts as error:
            retry = (b"retry-after", b"%d" % error.retry_after_seconds)
            raise ApiError(429, str(error), "rate_limit_exceeded", headers=[retry]) from None
        if not is_allowed:
            text = f"Models of {project} need `Authorization: Bearer` with the token of a member of the project"
            raise ApiError(403, text, "invalid_api_key")

    async def _models(self, project: str) -> tuple[Model, ...]:
        found = self._repo.list_models(project)
        return await found if inspect.isawaitable(found) else found

    async def _model(self, project: str, name: str) -> Model:
        for model in await self._models(project):
            if model.name == name:
                return model
        raise ApiError(404, f"There is no running model {name!r} in project {project}", "model_not_found")

    async def _answer_models(self, client: Client, project: str, path: bytes) -> None:
        if client.method not in ("GET", "HEAD"):
            raise ApiError(405, "Models are listed with GET", headers=[(b"allow", b"GET, HEAD, OPTIONS")])
        if path in (b"models", b"models/"):
            entries = [_entry(model, project) for model in await self._models(project)]
            body = orjson.dumps({"object": "list", "data": entries})
        else:
            name = unquote(path.removeprefix(b"models/").decode("latin-1"))
            body = orjson.dumps(_entry(await self._model(project, name), project))
        await client.answer(200, [JSON], body)

    async def _ask_model(self, client: Client, model: Model, path: bytes, body: bytes) -> None:
        if model.prefix is not None:
            await pass_on(client, self._open, model, path, body)
        elif path == CHAT and client.method == "POST":
            await chat(client, self._open, model, read_json(body), self._renderer)
        else:
            raise ApiError(404, f"Model {model.name!r} has the format tgi: it answers POST chat/completions only")


def _entry(model: Model, project: str) -> dict[str, object]:
    return {"object": "model", "id": model.name, "created": model.created, "owned_by": project}


async def _unless_gone(client: Client, answering: asyncio.Future[None]) -> None:
    """Waits for the answer; a client that leaves ends it, and with it the replica's request."""
    gone = asyncio.ensure_future(client.left())
    try:
        await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            await answering
    finally:
        for task in (answering, gone):
            task.cancel()
        await asyncio.gather(answering, gone, return_exceptions=True)
