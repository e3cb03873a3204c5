"""Answers that go on: one JSON object a line."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse


async def lines(items: AsyncIterator[bytes]) -> Response:
    """Waits for the first item, so that a mistake in the request is answered as such, not with a broken stream."""
    first = await anext(items, None)

    async def body() -> AsyncIterator[bytes]:
        if first is not None:
            yield first + b"\n"
        async for item in items:
            yield item + b"\n"

    return StreamingResponse(
        body(), media_type="application/x-ndjson", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
