"""Who may use services: remembered, and forgotten in the moment in which it changes."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from tests.fixtures.api import Api

from dstack.core.errors import TooManyAttempts
from dstack.server.proxy.auth import ServerProxyAuth, members_only

ADDRESS = "10.0.0.1"


@pytest.fixture
async def auth(api: Api) -> AsyncIterator[ServerProxyAuth]:
    """As the proxy has it."""
    context = api.context
    auth = ServerProxyAuth(members_only(context.access, context.failed_attempts), context.database.wakeups)
    yield auth
    auth.close()


async def ask(auth: ServerProxyAuth, caller: Api, project: str = "main") -> tuple[bool, bool]:
    """Whether the caller may use services, and whether that was known without asking the database."""
    assert caller.token is not None
    answer = auth.is_allowed(project, caller.token, ADDRESS)
    return (await answer, False) if inspect.isawaitable(answer) else (bool(answer), True)


async def member(api: Api, name: str = "alice") -> Api:
    """A user of `main`."""
    caller = await api.as_user(name)
    await api.ok("projects/main/add_members", {"members": [{"username": name, "project_role": "user"}]})
    return caller


async def refresh_token(api: Api, _caller: Api) -> None:
    await api.ok("users/refresh_token", {"username": "alice"})


async def deactivate(api: Api, _caller: Api) -> None:
    await api.ok("users/update", {"username": "alice", "global_role": "user", "active": False})


async def delete_user(api: Api, _caller: Api) -> None:
    await api.ok("users/delete", {"users": ["alice"]})


async def remove_member(api: Api, _caller: Api) -> None:
    await api.ok("projects/main/remove_members", {"usernames": ["alice"]})


async def set_other_members(api: Api, _caller: Api) -> None:
    members = [{"username": "admin", "project_role": "admin"}]
    await api.ok("projects/main/set_members", {"members": members})


Change = Callable[[Api, Api], Awaitable[None]]
CHANGES: list[Change] = [refresh_token, deactivate, delete_user, remove_member, set_other_members]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(change.__name__))
async def test_a_permission_ends_at_once(api: Api, auth: ServerProxyAuth, change: Change) -> None:
    caller = await member(api)
    assert await ask(auth, caller) == (True, False)
    assert await ask(auth, caller) == (True, True), "it is remembered"
    await change(api, caller)
    assert await ask(auth, caller) == (False, False)
    assert (await ask(auth, api))[0], "nobody else is concerned"


async def test_a_new_token_and_a_new_membership_hold_at_once(api: Api, auth: ServerProxyAuth) -> None:
    caller = await api.as_user("alice")
    assert await ask(auth, caller) == (False, False)
    await api.ok("projects/main/add_members", {"members": [{"username": "alice", "project_role": "user"}]})
    assert await ask(auth, caller) == (True, False)
    fresh = await api.ok("users/refresh_token", {"username": "alice"})
    assert await ask(auth, Api(api.app, fresh["creds"]["token"])) == (True, False)


async def test_a_deleted_project_has_no_services(api: Api, auth: ServerProxyAuth) -> None:
    await api.ok("projects/create", {"project_name": "other"})
    assert (await ask(auth, api, "other"))[0]
    assert await ask(auth, api, "other") == (True, True)
    await api.ok("projects/delete", {"projects_names": ["other"]})
    assert await ask(auth, api, "other") == (False, False)


async def test_b19_named_tokens_keep_to_their_scope(api: Api, auth: ServerProxyAuth) -> None:
    await api.ok("projects/create", {"project_name": "other"})

    async def made(**limits: Any) -> Api:
        token = await api.ok("users/tokens/create", {"name": f"t{len(limits)}", **limits})
        return Api(api.app, token["token"])

    anywhere, scoped = await made(), await made(projects=["main"], services_only=True)
    assert [(await ask(auth, anywhere, project))[0] for project in ("main", "other")] == [True, True]
    assert [(await ask(auth, scoped, project))[0] for project in ("main", "other")] == [True, False]
    assert await ask(auth, scoped) == (True, True)
    await api.ok("users/tokens/delete", {"names": ["t2"]})
    assert await ask(auth, scoped) == (False, False)
    assert (await ask(auth, anywhere))[0]


async def test_b18_unknown_tokens_are_limited_and_known_ones_are_not(api: Api, auth: ServerProxyAuth) -> None:
    api.context.failed_attempts.clock = lambda: 0.0
    stranger, caller = Api(api.app, "wrong"), await api.as_user("alice")
    for _ in range(api.context.failed_attempts.allowed):
        assert not (await ask(auth, stranger))[0]
    with pytest.raises(TooManyAttempts):
        await ask(auth, stranger)
    assert (await ask(auth, api))[0]
    assert not (await ask(auth, caller))[0], "a known token without the membership is no guess"
