"""Routes and permissions from a real database, and their caches."""

from __future__ import annotations

import inspect
import json
from datetime import datetime, timedelta
from typing import Any

from tests.fixtures.rows import EPOCH, job_row, project_row, run_row, user_row

from dstack.proxy.balancing import ByPrefix, BySession, LeastRequests, Policy
from dstack.proxy.repo import Model, Service
from dstack.server.db.engine import Database
from dstack.server.proxy.auth import ServerProxyAuth
from dstack.server.proxy.repo import ServerProxyRepo
from dstack.server.wakeups import Wakeups

SPEC = json.dumps({"configuration": {"type": "service", "auth": False, "strip_prefix": False}})


def service_spec(url: str = "/proxy/services/main/web/") -> str:
    return json.dumps({"url": url})


async def found(repo: ServerProxyRepo, run: str, project: str = "main") -> Service | None:
    answer = repo.find_service(project, run)
    return answer if answer is None or isinstance(answer, Service) else await answer


async def test_b5_routes_are_read_once_and_again_after_a_change(database: Database) -> None:
    user = user_row()
    project = project_row(user)
    run = run_row(project, user, "web", run_spec=SPEC, service_spec=service_spec())
    ready = job_row(run, status="running", registered=True, service_address="127.0.0.1:8000")
    starting = job_row(run, status="running", registered=False, service_address="127.0.0.1:8001", replica_num=1)
    ended = job_row(run, status="done", registered=True, service_address="127.0.0.1:8002", replica_num=2)
    async with database.transaction() as session:
        for rows in ([user], [project], [run], [ready, starting, ended]):
            session.add_all(rows)
            await session.flush()
    repo = ServerProxyRepo(database)
    service = await found(repo, "web")
    assert service == Service(str(run.id), "main", "web", False, False, ("127.0.0.1:8000",))
    assert repo.find_service("main", "web") is service

    async with database.transaction() as session:
        row = await session.get_one(type(starting), starting.id)
        row.registered = True
    assert repo.find_service("main", "web") is service
    database.wakeups.publish(["routes"])
    changed = await found(repo, "web")
    assert changed is not None
    assert changed.replicas == ("127.0.0.1:8000", "127.0.0.1:8001")
    repo.close()


def model_spec(name: str, **configuration: Any) -> dict[str, str]:
    """Columns of a service with a model."""
    model = {"name": name, "format": "openai", "type": "chat", "prefix": "/api"}
    fields = {"type": "service", "auth": True, "strip_prefix": True, "model": model, **configuration}
    shown = {"url": "/proxy/services/main/x/", "model": {"name": name, "base_url": "/", "type": "chat"}}
    return {"run_spec": json.dumps({"configuration": fields}), "service_spec": json.dumps(shown)}


POLICIES: list[tuple[Any, Policy]] = [
    (None, None),
    ({"policy": "random"}, None),
    ({"policy": "least_requests"}, LeastRequests()),
    ({"policy": "prefix", "prefix_length": 7, "load_factor": 2.0}, ByPrefix(7, 2.0)),
    ({"policy": "session", "header": "X-Session", "cookie": None}, BySession(b"x-session", None)),
    ({"policy": "session", "header": None, "cookie": "Tied"}, BySession(None, b"Tied")),
]


async def test_balancing_is_that_of_the_configuration(database: Database) -> None:
    user = user_row()
    project = project_row(user)
    runs = [
        run_row(project, user, f"web-{number}", **model_spec("m", balancing=balancing))
        for number, (balancing, _) in enumerate(POLICIES)
    ]
    async with database.transaction() as session:
        for rows in ([user], [project], runs):
            session.add_all(rows)
            await session.flush()
    repo = ServerProxyRepo(database)
    services = [await found(repo, run.run_name) for run in runs]
    assert [service.balancing for service in services if service] == [policy for _, policy in POLICIES]
    repo.close()


async def test_models_are_those_of_services_that_can_be_used_and_the_newest_has_the_name(
    database: Database,
) -> None:
    user = user_row()
    project, other = project_row(user), project_row(user, "other")
    tgi = {"name": "tgi", "format": "tgi", "type": "chat", "chat_template": "{{ 1 }}", "eos_token": "</s>"}
    scaling = {"replicas": {"min": 0, "max": 1}, "scaling": {"metric": "rps", "target": 1}}
    away = model_spec("away") | {
        "service_spec": json.dumps({"url": "https://x.example", "model": {"name": "away"}})
    }
    specs: dict[str, dict[str, Any]] = {
        "first": model_spec("llama"),
        "second": model_spec("llama"),
        "starting": model_spec("llama"),
        "tgi": model_spec("tgi", model=tgi),
        "sleeping": model_spec("sleeping", **scaling),
        "over": model_spec("over") | {"finished_at": EPOCH},
        "away": away,
        "plain": {"run_spec": SPEC, "service_spec": service_spec()},
    }
    runs = {
        name: run_row(project, user, name, **columns, submitted_at=EPOCH + timedelta(minutes=number))
        for number, (name, columns) in enumerate(specs.items())
    }
    theirs = run_row(other, user, "theirs", **model_spec("theirs"))
    jobs = [
        job_row(run, status="running", registered=name != "starting", service_address=f"127.0.0.1:{number}")
        for number, (name, run) in enumerate(runs.items())
        if name != "sleeping"
    ]
    async with database.transaction() as session:
        for rows in ([user], [project, other], [*runs.values(), theirs], jobs):
            session.add_all(rows)
            await session.flush()
    repo = ServerProxyRepo(database)

    async def listed() -> tuple[Model, ...]:
        answer = repo.list_models("main")
        return answer if isinstance(answer, tuple) else await answer

    models = {model.name: model for model in await listed()}
    assert set(models) == {"llama", "tgi", "sleeping"}
    assert (models["llama"].service.run, models["llama"].prefix) == ("second", "/api")
    assert models["llama"].created == int((EPOCH + timedelta(minutes=1)).timestamp())
    assert models["llama"].service.replicas == ("127.0.0.1:1",)
    assert models["sleeping"].service.wakes
    assert (models["tgi"].prefix, models["tgi"].chat_template, models["tgi"].eos_token) == (
        None,
        "{{ 1 }}",
        "</s>",
    )
    assert isinstance(repo.list_models("main"), tuple), "it is remembered"

    async with database.transaction() as session:
        row = await session.get_one(type(jobs[0]), jobs[1].id)
        row.registered = False
    database.wakeups.publish(["routes"])
    assert {model.name: model.service.run for model in await listed()}["llama"] == "first"
    repo.close()


async def test_what_is_no_service_here_is_not_found(database: Database) -> None:
    user = user_row()
    project = project_row(user)
    runs = [
        run_row(project, user, "task"),
        run_row(project, user, "elsewhere", run_spec=SPEC, service_spec=service_spec("https://elsewhere.example")),
        run_row(project, user, "over", run_spec=SPEC, service_spec=service_spec(), finished_at=EPOCH),
    ]
    async with database.transaction() as session:
        for rows in ([user], [project], runs):
            session.add_all(rows)
            await session.flush()
    repo = ServerProxyRepo(database)
    for name in ("task", "elsewhere", "over", "unknown"):
        assert await found(repo, name) is None
        assert repo.find_service("main", name) is None
    repo.close()


async def test_permissions_are_remembered_until_tokens_or_members_change() -> None:
    members = {("good", "main")}
    asked = []

    now = EPOCH

    async def may_use(token: str, project: str, _address: str) -> datetime | None:
        asked.append(token)
        return EPOCH + timedelta(minutes=1) if (token, project) in members else None

    wakeups = Wakeups()
    auth = ServerProxyAuth(may_use, wakeups, lambda: now)

    async def is_allowed(token: str) -> bool:
        answer = auth.is_allowed("main", token, "10.0.0.1")
        return await answer if inspect.isawaitable(answer) else bool(answer)

    assert [await is_allowed(token) for token in ("good", "good", "bad", "bad")] == [True, True, False, False]
    assert asked == ["good", "bad", "bad"]
    now += timedelta(minutes=1)
    assert await is_allowed("good") is True
    assert asked[3:] == ["good"], "it was asked again once the token's time was over"
    now -= timedelta(minutes=1)
    members.clear()
    wakeups.publish(["members"])
    assert await is_allowed("good") is False
    auth.close()
