"""`/api/backends`: which backends this server has."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from dstack.backends.registry import MODULES
from dstack.core.backends import BackendType
from dstack.core.server_config import OWN_BACKENDS
from dstack.server.api import answers
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Public

router = APIRouter(prefix="/api/backends", tags=["backends"])


@router.post("/list_types", openapi_extra=answering(list[BackendType]))
async def list_backend_types(_: Public) -> Response:
    """Those that need a configuration; our own ones are there without."""
    return answers.plain(sorted(name for name in MODULES if name not in OWN_BACKENDS))
