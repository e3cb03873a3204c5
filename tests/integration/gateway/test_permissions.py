"""Tokens that nginx knows: revoked ones, a server that is silent, an app that is killed, and changes at once."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from tests.integration.gateway.conftest import ALLOWED, Gateway, eventually, replicas

from dstack.proxy.gateway.known_tokens import FRESH, KNOWN
from dstack.proxy.gateway.settings import GatewaySettings

OTHER = {"Authorization": "Bearer other"}


def forget_freshness(settings: GatewaySettings) -> None:
    """As after 30 s."""
    shutil.rmtree(settings.known_tokens / FRESH)


async def test_b20_a_token_that_is_revoked_is_found_out_when_the_server_is_asked_again(
    app: Gateway, short_path: Path
) -> None:
    async def status() -> int:
        return (await app.request("hello", headers=OTHER)).status_code

    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        app.server.tokens.add("other")
        assert await status() == 200
        app.server.tokens.remove("other")
        assert await status() == 200
        await eventually(status, 403, seconds=60)
        assert not list(app.settings.known_tokens.rglob("*other"))
        assert (await app.request("hello")).status_code == 200


async def test_tokens_stay_within_their_project(app: Gateway, short_path: Path) -> None:
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        assert (await app.request("hello")).status_code == 200
        body = {"id": "run-b", "run_name": "b", "domain": "b.example", "https": False, "auth": True}
        await app.api(
            "/api/registry/elsewhere/services/register", {**body, "client_max_body_size": 0, "ssh_private_key": ""}
        )
        app.server.tokens.clear()
        assert (await app.request("b")).status_code == 403
        assert (await app.request("hello")).status_code == 200


async def test_what_is_no_name_of_a_file_is_a_token_like_others(app: Gateway, short_path: Path) -> None:
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        for token, status in (("a/../b=", 200), ("x" * 300, 200), ("../other", 403)):
            if status == 200:
                app.server.tokens.add(token)
            answers = [await app.request("hello", headers={"Authorization": f"Bearer {token}"}) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [status] * 3
        assert len(app.server.asked) == 3


@asynccontextmanager
async def app_process(gateway: Gateway) -> AsyncIterator[asyncio.subprocess.Process]:
    """The app as it runs on a host."""
    file = gateway.settings.dir / "settings.json"
    file.write_text(json.dumps(asdict(gateway.settings), default=str))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dstack.proxy.gateway.main", "--settings", str(file)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    async def answers() -> bool:
        assert process.returncode is None
        try:
            return (await gateway.call("/"))[0] == 200
        except httpx.TransportError:
            return False

    try:
        await eventually(answers, True, seconds=60)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_killed_app_stops_no_request_of_known_tokens(gateway: Gateway, short_path: Path) -> None:
    statuses: list[int] = []

    async def load(client: httpx.AsyncClient) -> None:
        headers = {"Host": "hello.example", **ALLOWED}
        while True:
            statuses.append((await client.get(gateway.url, headers=headers)).status_code)

    async def status(headers: dict[str, str] = ALLOWED) -> int:
        return (await gateway.request("hello", headers=headers)).status_code

    async with replicas(short_path, "one") as made, httpx.AsyncClient(timeout=20) as client:
        async with app_process(gateway) as process:
            await gateway.publish("hello", made["one"][0])
            assert await status() == 200
            loading = [asyncio.create_task(load(client)) for _ in range(4)]
            process.kill()
            await process.wait()
        forget_freshness(gateway.settings)  # nginx wants to ask, and nobody answers
        seen = len(statuses)
        await eventually(lambda: _is_more(statuses, seen + 200), True)
        assert await status(OTHER) == 500
        async with app_process(gateway) as process:
            seen = len(statuses)
            await eventually(lambda: _is_more(statuses, seen + 200), True)
            await eventually(lambda: asyncio.to_thread((gateway.settings.known_tokens / FRESH).is_dir), True)
            process.kill()
            await process.wait()
        for task in loading:
            assert not task.done() or task.exception() is None
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        assert set(statuses) == {200}
        for kind in (FRESH, KNOWN):
            shutil.rmtree(gateway.settings.known_tokens / kind, ignore_errors=True)
        await eventually(status, 500)


async def _is_more(statuses: list[int], than: int) -> bool:
    return len(statuses) > than


async def test_a_silent_server_is_waited_for_as_long_as_its_word_is_known(app: Gateway, short_path: Path) -> None:
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        assert (await app.request("hello")).status_code == 200
        (app.settings.server_connections / "a.sock").unlink()
        forget_freshness(app.settings)
        assert (await app.request("hello")).status_code == 200
        assert (await app.request("hello", headers=OTHER)).status_code == 500


async def test_changes_at_once_are_loaded_together_and_only_the_bad_one_is_refused(
    app: Gateway, short_path: Path
) -> None:
    def body(name: str, **fields: Any) -> dict[str, Any]:
        service = {"id": name, "run_name": name, "domain": f"{name}.example", "https": False, "auth": True}
        return {**service, "client_max_body_size": 0, "ssh_private_key": "", **fields}

    register = "/api/registry/main/services/register"
    bad = body("bad", client_max_body_size=10**30)
    names = [f"s{number}" for number in range(12)]
    answers = await asyncio.gather(
        *(app.call(register, body(name)) for name in names[:6]),
        app.call(register, bad),
        *(app.call(register, body(name)) for name in names[6:]),
    )
    assert [status for status, _ in answers] == [200] * 6 + [400] + [200] * 6, answers
    assert "client_max_body_size" in answers[6][1]["detail"]
    assert {(await app.request(name)).status_code for name in names} == {503}
    assert (await app.request("bad")).status_code == 404
    reloads = (app.settings.nginx_pid_file.parent / "error.log").read_text().count("signal process started")
    assert reloads < len(names)
