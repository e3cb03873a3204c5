"""The OpenAPI text: written from the routes when somebody asks for it, so that it costs nothing at start-up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from dstack import COMPATIBILITY_LEVEL
from dstack.server.api.bodies import BodyReader
from dstack.server.api.permissions import permission_of

ANSWER = "x-answer"


def answers(type_: Any = None) -> dict[str, Any]:
    """For `openapi_extra` of a route: the type of what it answers; None: nothing."""
    return {ANSWER: type_}


def openapi(all_routes: Iterable[APIRoute]) -> dict[str, Any]:
    """OpenAPI 3.1 of the routes that are described."""
    routes = [route for route in all_routes if ANSWER in (route.openapi_extra or {})]
    schemas, definitions = _schemas(routes)
    paths: dict[str, Any] = {}
    for route in routes:
        for method in sorted(route.methods or ()):
            paths.setdefault(route.path, {})[method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dstack",
            "version": COMPATIBILITY_LEVEL,
            "summary": "The REST API of the dstack server.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def body_of(route: APIRoute) -> BodyReader | None:
    """How the route reads its body; None when it has none."""
    return next((d.call for d in route.dependant.dependencies if isinstance(d.call, BodyReader)), None)


def _schemas(routes: Iterable[APIRoute]) -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    inputs: list[Any] = []
    for route in routes:
        body = body_of(route)
        if body is not None:
            inputs.append((_key(route, "body"), "validation", TypeAdapter(body.model)))
        answer = (route.openapi_extra or {})[ANSWER]
        if answer is not None:
            inputs.append((_key(route, "answer"), "serialization", TypeAdapter(answer)))
    schemas, rest = TypeAdapter.json_schemas(
        inputs, ref_template="#/components/schemas/{model}", schema_generator=GenerateJsonSchema
    )
    return {key: schema for (key, _mode), schema in schemas.items()}, rest.get("$defs", {})


def _key(route: APIRoute, part: str) -> Any:
    return (route.path, ",".join(sorted(route.methods or ())), part)


def _query_parameter(field: Any) -> dict[str, Any]:
    info = field.field_info
    annotated: Any = Annotated[info.annotation, info]
    schema = TypeAdapter(annotated).json_schema()
    return {"name": field.alias, "in": "query", "required": info.is_required(), "schema": schema}


def _operation(route: APIRoute, schemas: dict[Any, Any]) -> dict[str, Any]:
    permission = permission_of(route)
    operation: dict[str, Any] = {
        "summary": route.summary or route.name.replace("_", " ").capitalize(),
        "description": route.description,
        "tags": list(route.tags),
        "operationId": route.name,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in route.param_convertors
        ]
        + [_query_parameter(field) for field in route.dependant.query_params],
        "responses": {
            "200": {
                "description": "Done",
                "content": {"application/json": {"schema": schemas.get(_key(route, "answer"), {"type": "null"})}},
            }
        },
    }
    if permission is not None and permission.name != "public":
        operation["security"] = [{"token": []}]
        operation["x-permission"] = permission.name
    body = body_of(route)
    if body is not None:
        operation["requestBody"] = {
            "required": not body.optional,
            "content": {"application/json": {"schema": schemas[_key(route, "body")]}},
        }
    return operation
