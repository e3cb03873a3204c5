"""Health, version, the description of the API, and log-in providers."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from dstack import COMPATIBILITY_LEVEL
from dstack.core.schemas.auth import (
    OAuthGetNextRedirectRequest,
    OAuthGetNextRedirectResponse,
    OAuthProviderInfo,
)
from dstack.core.schemas.server import ServerInfo
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.describe import openapi
from dstack.server.api.permissions import Public

router = APIRouter(tags=["server"])


@router.get("/healthcheck", openapi_extra=answering(dict[str, str]))
async def healthcheck(_: Public) -> Response:
    return answers.Json(b'{"status":"running"}')


@router.post("/api/server/get_info", openapi_extra=answering(ServerInfo))
async def get_info(_: Public) -> Response:
    """The level of the API that this server speaks."""
    return answers.model(ServerInfo(server_version=COMPATIBILITY_LEVEL))


@router.post("/api/auth/list_providers", openapi_extra=answering(list[OAuthProviderInfo]))
async def list_providers(_: Public) -> Response:
    """Nobody but the server itself vouches for users: there are tokens, and no providers."""
    return answers.models([])


@router.post("/api/auth/get_next_redirect", openapi_extra=answering(OAuthGetNextRedirectResponse))
async def get_next_redirect(
    _: Public, body: Annotated[OAuthGetNextRedirectRequest, JsonBody(OAuthGetNextRedirectRequest)]
) -> Response:
    """Without providers there is nowhere to go on to."""
    return answers.model(OAuthGetNextRedirectResponse(redirect_url=None))


@router.get("/openapi.json", include_in_schema=False)
async def openapi_json(_: Public, request: Request) -> Response:
    """Written at the first request."""
    state = request.app.state
    if not hasattr(state, "openapi_text"):
        state.openapi_text = orjson.dumps(openapi(state.routes))
    return answers.Json(state.openapi_text)


@router.get("/api/docs", include_in_schema=False)
async def docs(_: Public) -> Response:
    """A page that lists the operations; it loads nothing from elsewhere."""
    return HTMLResponse(DOCS_PAGE)


DOCS_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dstack REST API</title>
<style>body{font:15px/1.5 system-ui;margin:2rem auto;max-width:60rem;padding:0 1rem}
summary{cursor:pointer;font-family:monospace}pre{background:#f4f4f5;padding:.8rem;overflow:auto}</style></head>
<body><h1>dstack REST API</h1><p>The machine-readable description is <a href="/openapi.json">/openapi.json</a>.</p>
<div id="operations">Loading…</div>
<script>
fetch("/openapi.json").then(r => r.json()).then(api => {
  const root = document.getElementById("operations"); root.textContent = "";
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, operation] of Object.entries(methods)) {
      const details = document.createElement("details"), summary = document.createElement("summary");
      summary.textContent = method.toUpperCase() + " " + path + " — " + operation.summary;
      const pre = document.createElement("pre"); pre.textContent = JSON.stringify(operation, null, 2);
      details.append(summary, pre); root.append(details);
    }
});
</script></body></html>
"""
