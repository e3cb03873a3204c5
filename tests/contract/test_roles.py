"""Every route, called by nobody, a stranger, a member, a manager, an admin of the project, one of the server."""

from __future__ import annotations

import httpx
import pytest
from fastapi.routing import APIRoute
from tests.fixtures.api import Api, serving_once

from dstack.server.api.permissions import permission_of
from dstack.server.app import api_routes

ROUTES = api_routes()
CALLERS = ("nobody", "stranger", "member", "manager", "admin", "root")
WHO_MAY = {
    "public": CALLERS,
    "metrics token": CALLERS,
    "user": CALLERS[1:],
    "unlimited user": CALLERS[1:],
    "first token": CALLERS[1:],
    "any user": CALLERS[1:],
    "project user": CALLERS[2:],
    "project user or public": CALLERS[2:],
    "project manager": CALLERS[3:],
    "project admin": CALLERS[4:],
    "secrets": CALLERS[4:],
    "global admin": CALLERS[5:],
    "ssh proxy": (),
}
"""On a private project, with the default permissions."""


def test_every_route_declares_exactly_one_permission() -> None:
    undeclared = [route.path for route in ROUTES if permission_of(route) is None]
    assert undeclared == []


def test_every_permission_is_known_here() -> None:
    assert {permission.name for route in ROUTES if (permission := permission_of(route))} <= WHO_MAY.keys()


def test_everything_under_a_project_needs_a_role_in_it() -> None:
    for route in ROUTES:
        permission = permission_of(route)
        assert permission is not None
        if "{project_name}" in route.path:
            assert permission.name not in ("public", "user", "unlimited user", "first token"), route.path


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
async def test_who_may_call(route: APIRoute, tmp_path_factory: pytest.TempPathFactory) -> None:
    permission = permission_of(route)
    assert permission is not None
    async with serving_once(tmp_path_factory.mktemp("server")) as root:
        callers = {
            "nobody": root.anonymous(),
            "stranger": await root.as_user("stranger"),
            "member": await root.as_user("member", role="user"),
            "manager": await root.as_user("manager", role="manager"),
            "admin": await root.as_user("admin-of-main", role="admin"),
            "root": root,
        }
        let_in = [name for name, caller in callers.items() if _is_let_in(await _call(caller, route))]
    assert tuple(let_in) == WHO_MAY[permission.name]


async def _call(caller: Api, route: APIRoute) -> httpx.Response:
    """A body that no operation accepts: whoever is let in gets 422 or 400, and nothing is changed."""
    path = route.path.replace("{project_name}", "main")
    method = "GET" if "GET" in (route.methods or ()) else "POST"
    return await caller.client.request(method, path, json={"no such key": 1} if method == "POST" else None)


def _is_let_in(response: httpx.Response) -> bool:
    if response.status_code in (401, 403):
        assert ("WWW-Authenticate" in response.headers) == (response.status_code == 401)
        return False
    is_switched_off = response.status_code == 404 and response.request.url.path == "/metrics"
    assert is_switched_off or response.status_code in (200, 400, 422), response.text
    return True


async def test_an_unknown_token_an_unknown_project_and_a_foreign_one(sqlite_api: Api) -> None:
    unknown = await Api(sqlite_api.app, "nobody-has-this").post("projects/main/get")
    assert (unknown.status_code, unknown.json()["detail"]["code"]) == (403, None)
    missing = await sqlite_api.post("projects/nope/get")
    assert (missing.status_code, missing.json()["detail"]["code"]) == (404, None)
    stranger = await sqlite_api.as_user("stranger")
    foreign = await stranger.post("projects/main/get")
    assert (foreign.status_code, foreign.json()["detail"]["code"]) == (403, None)


async def test_better_b18_guessing_is_limited_and_good_tokens_are_not(sqlite_api: Api) -> None:
    guesser = Api(sqlite_api.app, "guess")
    answers = [await guesser.post("users/get_my_user") for _ in range(30)]
    assert answers[0].status_code == 403
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert (await sqlite_api.post("users/get_my_user")).status_code == 200
