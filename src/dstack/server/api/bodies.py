"""How handlers get their request bodies: `body: Annotated[X, JsonBody(X)]`.

The model's validator is built at the first request that needs it, not at start-up.
"""

from __future__ import annotations

from typing import Any

from fastapi import params
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from dstack.server.api.errors import validation_error


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
        try:
            return self.model.model_validate_json(raw)
        except ValidationError as error:
            raise validation_error(error) from None


def JsonBody(model: type[BaseModel], *, optional: bool = False) -> Any:
    return params.Depends(BodyReader(model, optional=optional))


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
