"""The client reaches every operation of the reference, with bodies that its schema accepts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import pytest
from tests.fixtures.api import reference

from dstack.api.rest.client import RestClient
from dstack.api.rest.connection import Connection

NOT_FOR_CLIENTS = {
    "/api/sshproxy/get_upstream": "called by the SSH proxy with its own token",
}
OURS = re.compile(r"/api/users/tokens/|/(watch|follow)$|/api/auth/[^/]+/(authorize|callback)$")
"""Beyond the reference's operations: of this server, or of servers that know providers."""
CONFIGURATIONS = {
    "volumes": {"type": "volume", "backend": "aws", "region": "r", "name": "v"},
    "gateways": {"type": "gateway", "backend": "aws", "region": "r", "name": "g"},
}
ID = "11111111-1111-4111-8111-111111111111"
VALUES: dict[str, Any] = {
    "backend": "aws",
    "global_role": "user",
    "roles": {"alice": "manager"},
    "instance_nums": [0],
    "instance_num": 0,
    "instance_id": ID,
    "ids": [ID],
    "submission_id": ID,
    "config": {"type": "aws", "creds": {"type": "default"}},
    "repo_info": {"repo_type": "virtual"},
    "local_port": 1,
    "diff": b"d",
    "content": b"c",
    "filters": {},
    "current_resource": None,
    "group_by": ["backend"],
    "full_offers": False,
    "unallocated": False,
}


class Recording(Connection):
    """Keeps what would be sent; answers with whatever a method may look at."""

    def __init__(self) -> None:
        super().__init__("http://server", "token")
        self.calls: list[tuple[str, str, Any]] = []

    def post(self, path: str, body: Any = None) -> Any:
        return self._note("post", path, body)

    def get(self, path: str) -> Any:
        return self._note("get", path, None)

    def upload(self, path: str, filename: str, content: bytes) -> Any:
        return self._note("post", path, None)

    @contextmanager
    def stream(self, path: str, body: Any) -> Iterator[Iterator[dict[str, Any]]]:
        self._note("post", path, body)
        yield iter(())

    def _note(self, method: str, path: str, body: Any) -> Any:
        self.calls.append((method, path.partition("?")[0], body))
        return {key: [] for key in ("gpus", "metrics", "health_checks", "exports", "imports")} | {
            "id": ID,
            "authorization_url": "",
            "status": "running",
        }


def groups() -> dict[str, Any]:
    client = RestClient("http://server", "token")
    return {name: api for name, api in vars(client).items() if name != "connection"}


def called(group: str, method: str) -> tuple[str, str, Any]:
    """What a call of the method sends, with a value for each parameter that has no default."""
    connection = Recording()
    function = getattr(type(groups()[group])(connection), method)
    values = {
        name: VALUES.get(name, value_of(group, name, parameter.annotation))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }
    result = function(**values)
    if hasattr(result, "__enter__"):
        with result:
            pass
    assert len(connection.calls) == 1, f"{group}.{method} calls more than one operation"
    return connection.calls[0]


def value_of(group: str, name: str, annotation: str) -> Any:
    if name in ("spec", "run_spec", "configuration"):
        return spec_of(group, name)
    if annotation.startswith("Sequence"):
        return ["aws"]
    return "xx"


def spec_of(group: str, name: str) -> Any:
    if name == "run_spec":
        return {"configuration": {"type": "task", "commands": ["true"]}}
    if group == "fleets":
        return {"configuration": {"type": "fleet", "nodes": 1}, "profile": {"name": "default"}}
    return CONFIGURATIONS[group] if name == "configuration" else {"configuration": CONFIGURATIONS[group]}


METHODS = [
    (group, name)
    for group, api in groups().items()
    for name, _ in inspect.getmembers(api, inspect.ismethod)
    if not name.startswith("_")
]


def template_of(path: str) -> str | None:
    """The operation of the reference; literal segments before parameters."""
    for template in sorted(reference()["paths"], key=lambda path: path.count("{")):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            return str(template)
    return None


def test_every_operation_of_the_reference_is_reached() -> None:
    reached = {(template_of(path), method) for method, path, _ in (called(*one) for one in METHODS)}
    wanted = {
        (path, method)
        for path, operations in reference()["paths"].items()
        if path.startswith("/api/") and path not in NOT_FOR_CLIENTS
        for method in operations
    }
    assert wanted - reached == set()


@pytest.mark.parametrize(("group", "method"), METHODS)
def test_what_is_sent_is_what_the_reference_takes(group: str, method: str) -> None:
    verb, path, body = called(group, method)
    template = template_of(path)
    assert template is not None or OURS.search(path), path
    if template is None or body is None:
        return
    operation = reference()["paths"][template][verb]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": reference()["components"]}).validate(body)
