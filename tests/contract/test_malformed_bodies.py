"""Every operation, with bodies that are broken or of wrong types: the caller is told what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from tests.fixtures.api import Api

from dstack.server.api.describe import body_of
from dstack.server.app import api_routes

BROKEN = (b"", b"{", b"null", b"[]", b'"x"', b"-1", b"{}", b'{"no such key": 1}', b"\xff\xfe", b"[" * 2000, b"NaN")
WRONG: tuple[object, ...] = (
    None,
    True,
    -1,
    10**30,
    1e308,
    "",
    "x",
    "a\x00b",
    "\ud83d\ude00" * 50,
    [],
    [None],
    {},
    {"a": {"b": []}},
)
STREAMS = ("/api/project/{project_name}/runs/watch", "/api/project/{project_name}/logs/follow")
"""Answers to what is right do not end."""


async def test_no_body_makes_an_operation_fail(api: Api) -> None:
    failures = []
    for route in api_routes():
        for body in bodies(route):
            answer = await api.client.request(
                sorted(route.methods or ())[0],
                re.sub(r"\{\w+\}", "main", route.path),
                content=body,
                headers={"Content-Type": "application/json"},
            )
            if answer.status_code >= 500:
                failures.append((route.path, body[:200], answer.status_code))
    assert failures == [], "\n".join(map(str, failures))


def bodies(route: APIRoute) -> Iterator[bytes]:
    reader = body_of(route)
    if reader is None or route.path in STREAMS:
        yield from BROKEN if route.path not in STREAMS else BROKEN[:6]
        return
    yield from BROKEN
    schema = TypeAdapter(reader.model).json_schema()
    right = sample(schema, schema)
    for name in schema.get("properties", {}):
        for wrong in WRONG:
            yield json.dumps({**right, name: wrong}).encode()


def sample(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """The smallest value that the schema accepts, or nearly so."""
    if "$ref" in schema:
        return sample(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return sample(schema[key][0], root)
    if schema.get("type") == "object":
        wanted = schema.get("required", ())
        return {name: sample(schema["properties"][name], root) for name in wanted}
    plain = {"string": "xx", "integer": 1, "number": 1, "boolean": False, "array": [], "null": None}
    if schema.get("format") == "uuid":
        return "00000000-0000-4000-8000-000000000000"
    return plain.get(schema.get("type", ""), {})
