"""How handlers get their request bodies: `body: Annotated[X, JsonBody(X)]`.

The model's validator is built at the first request that needs it, not at start-up.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import params
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from dstack.server.api.errors import validation_error

NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""As JSON writes it; not a backslash that is followed by these letters."""


class BodyReader:
    """Reads and validates. `optional`: an absent or `null` body is None."""

    def __init__(self, model: type[BaseModel], *, optional: bool = False) -> None:
        self.model = model
        self.optional = optional

    async def __call__(self, request: Request) -> Any:
        raw = await request.body()
        if self.optional and raw.strip() in (b"", b"null"):
            return None
        _require_json(request, raw)
        _refuse_nul(raw)
        try:
            return self.model.model_validate_json(raw)
        except ValidationError as error:
            raise validation_error(error) from None


def JsonBody(model: type[BaseModel], *, optional: bool = False) -> Any:
    return params.Depends(BodyReader(model, optional=optional))


def _refuse_nul(raw: bytes) -> None:
    """PostgreSQL keeps no text with the character U+0000, and no command line takes one."""
    if b"\\u0000" in raw and NUL.search(raw):
        message = "Text must not contain the character U+0000"
        raise RequestValidationError([{"type": "value_error", "loc": ("body",), "msg": message, "input": None}])


def _require_json(request: Request, raw: bytes) -> None:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if not raw:
        missing = {"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}
        raise RequestValidationError([missing])
    if not is_json:
        raise RequestValidationError(
            [
                {
                    "type": "model_attributes_type",
                    "loc": ("body",),
                    "msg": "Input should be a valid dictionary or object to extract fields from; "
                    "send it with Content-Type: application/json",
                    "input": raw[:1000].decode(errors="replace"),
                }
            ]
        )
