"""Our models have the names and fields of the reference's schemas."""

import enum
import importlib
import inspect
import json
import pkgutil
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import dstack.core

SPEC = json.loads((Path(__file__).parents[2] / "reference" / "rest-api.openapi.json").read_text())
SCHEMAS: dict[str, Any] = SPEC["components"]["schemas"]

NOT_OURS = {
    "AccessDeniedDetailsModel": "an error body: made from dstack.core.errors",
    "AccessDeniedErrorModel": "an error body",
    "BadRequestDetailsModel": "an error body",
    "BadRequestErrorModel": "an error body",
    "HTTPValidationError": "an error body, made by the web framework",
    "ValidationError": "an error body, made by the web framework",
    "ServerClientErrorCode": "dstack.core.errors.ErrorCode",
    "Body_upload_archive_api_files_upload_archive_post": "a multipart form",
    "Body_upload_code_api_project__project_name__repos_upload_code_post": "a multipart form",
    "ChatCompletionsChoice": "the proxy passes such bodies through unread",
    "ChatCompletionsRequest": "the proxy passes such bodies through unread",
    "ChatCompletionsResponse": "the proxy passes such bodies through unread",
    "ChatCompletionsUsage": "the proxy passes such bodies through unread",
    "ChatMessage": "the proxy passes such bodies through unread",
    "Model": "belongs to the proxy",
    "ModelsResponse": "belongs to the proxy",
    "Env": "an annotated type, not a class",
}
BACKEND_WORDS: tuple[str, ...] = (
    "BackendConfig",
    "Creds",
    "AWSOSImage",
    "KubeconfigConfig",
    "KubernetesContextConfig",
)
BACKEND_WORDS += ("KubernetesProxyJumpConfig", "SlurmClusterConfig", "SlurmGPUPartition", "SlurmPrivateKey")
BACKEND_WORDS += ("Range_",)  # one generic class here
OURS_DESPITE_THE_WORD = {
    "UserTokenCreds",
    "UserWithCreds",
    "RemoteRepoCreds",
    "RepoHeadWithCreds",
    "SaveRepoCredsRequest",
}


def base(name: str) -> str:
    return name.removesuffix("-Input").removesuffix("-Output")


def our_classes() -> dict[str, type]:
    found: dict[str, type] = {}
    for module in pkgutil.walk_packages(dstack.core.__path__, "dstack.core."):
        for name, value in vars(importlib.import_module(module.name)).items():
            is_own = inspect.isclass(value) and value.__module__ == module.name
            if is_own and module.name not in ("dstack.core.client_config", "dstack.core.server_config"):
                found[name] = value
    return found


CLASSES = our_classes()


def wanted() -> list[str]:
    return [
        name
        for name in SCHEMAS
        if base(name) not in NOT_OURS
        and (base(name) in OURS_DESPITE_THE_WORD or not any(word in name for word in BACKEND_WORDS))
    ]


def is_nullable(schema: dict[str, Any]) -> bool:
    return any(option.get("type") == "null" for option in schema.get("anyOf", []))


def allows_none(annotation: Any) -> bool:
    if typing.get_origin(annotation) is typing.Annotated:
        return allows_none(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(allows_none(option) for option in typing.get_args(annotation))
    return annotation in (type(None), None, Any)


ADDED = {
    ("SSHHostParams", "host_key"),
    ("SSHProxyParams", "host_key"),
    ("ScalingSpec", "effective_metric"),
    ("Run", "service_stats"),
    ("JobConnectionInfo", "ssh_door"),
    ("JobConnectionInfo", "host_network_id"),
    ("ServiceConfiguration", "balancing"),
    ("GatewayConfiguration", "ssh_config"),
}
"""Fields of ours that the published schemas do not have; on the wire only when they are set."""


@pytest.mark.parametrize("name", wanted())
def test_schema_has_its_class(name: str) -> None:
    schema, ours = SCHEMAS[name], CLASSES[base(name)]
    if "enum" in schema:
        assert issubclass(ours, enum.Enum)
        assert [item.value for item in ours] == schema["enum"]
        return
    assert issubclass(ours, BaseModel)
    if not schema.get("properties"):
        return
    fields = ours.model_fields
    hidden = {key for key, field in fields.items() if field.exclude or (name.split("-")[0], key) in ADDED}
    assert [key for key in fields if key not in hidden or key in schema["properties"]] == list(
        schema["properties"]
    )
    required = {key for key, field in fields.items() if field.is_required()}
    if not name.endswith("-Output"):
        assert required == set(schema.get("required", []))
    for key, property_schema in schema["properties"].items():
        assert (
            allows_none(fields[key].annotation) == is_nullable(property_schema) or fields[key].annotation is Any
        ), key
