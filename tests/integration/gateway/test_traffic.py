"""What clients of a gateway see, through its nginx."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import openai
import websockets
from tests.integration.gateway.conftest import ALLOWED, TOKEN, Gateway, eventually, replicas

OTHER = {"Authorization": "Bearer other"}


async def test_a_service_answers_whom_the_server_lets_in(app: Gateway, short_path: Path) -> None:
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        response = await app.request("hello", "/a%2Fb//c?x=%20")
        assert response.json() == {"replica": "one", "target": "/a%2Fb//c", "length": 0}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic Z29vZA=="}):
            assert (await app.request("hello", headers=headers)).status_code == 403
        assert (await app.request("nobody")).status_code == 404
        await app.api("/api/registry/main/services/hello/unregister", {})
        assert (await app.request("hello")).status_code == 404
        assert [path.name for path in app.settings.sites_dir.iterdir()] == ["00-dstack.conf"]


async def test_b1_the_platforms_token_stays_here_and_forwarding_headers_are_ours(
    app: Gateway, short_path: Path
) -> None:
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        await app.publish("open", made["one"][0], auth=False)
        forged = {
            "X-Forwarded-For": "1.2.3.4",
            "X-Forwarded-Prefix": "/x",
            "Forwarded": "for=1.2.3.4",
            "TE": "gzip",
        }
        await app.request("hello", headers={**ALLOWED, **forged})
        head = made["one"][1].heads[-1]
        assert not {"authorization", "forwarded", "te", "x-forwarded-prefix", "keep-alive"} & head.keys()
        assert (head["x-forwarded-for"], head["x-forwarded-proto"]) == ("127.0.0.1", "http")
        assert (head["host"], head["x-forwarded-host"]) == ("hello.example", "hello.example")
        await app.request("open", headers={"Authorization": "Bearer its-own"})
        assert made["one"][1].heads[-1]["authorization"] == "Bearer its-own"


async def test_b20_permissions_are_remembered_by_nginx_and_end_within_a_minute(
    app: Gateway, short_path: Path
) -> None:
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        assert {(await app.request("hello")).status_code for _ in range(20)} == {200}
        assert len(app.server.asked) == 1
        assert {(await app.request("hello", headers={})).status_code for _ in range(5)} == {403}
        assert {(await app.request("hello", headers=OTHER)).status_code for _ in range(5)} == {403}
        assert len(app.server.asked) == 2
        shutil.rmtree(app.settings.auth_cache_dir)
        (app.settings.server_connections / "a.sock").unlink()
        assert (await app.request("hello")).status_code == 200  # nginx finds it among the known ones
        log = (app.settings.nginx_pid_file.parent / "error.log").read_text()
        assert "Permission denied" not in log


async def test_a_silent_server_lets_nobody_in(app: Gateway, short_path: Path) -> None:
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        (app.settings.server_connections / "a.sock").unlink()
        assert (await app.request("hello")).status_code == 500
        assert made["one"][1].heads == []


async def test_requests_go_to_replicas_in_turn_and_without_one_it_is_503(app: Gateway, short_path: Path) -> None:
    async with replicas(short_path, "one", "two") as made:
        await app.publish("hello")
        assert (await app.request("hello")).status_code == 503
        assert (await app.request("hello", headers={})).status_code == 403
        for name in ("one", "two"):
            body = {"job_id": name, "app_port": 80, "socket": str(made[name][0])}
            await app.api("/api/registry/main/services/hello/replicas/register", body)
        seen = {(await app.request("hello")).json()["replica"] for _ in range(8)}
        assert seen == {"one", "two"}
        await app.api("/api/registry/main/services/hello/replicas/one/unregister", {})
        assert {(await app.request("hello")).json()["replica"] for _ in range(4)} == {"two"}


async def test_websockets_streams_and_bodies(app: Gateway, short_path: Path) -> None:
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        port = app.settings.http_port
        async with websockets.connect(
            "ws://hello.example/ws", host="127.0.0.1", port=port, additional_headers=ALLOWED
        ) as socket:
            await socket.send("x" * 100_000)
            assert len(await socket.recv()) == 100_000
        fits, too_large = b"x" * 1_000_000, b"x" * 1_000_001
        assert (await app.request("hello", method="POST", content=fits)).json()["length"] == len(fits)
        assert (await app.request("hello", method="POST", content=too_large)).status_code == 413
        async with (
            httpx.AsyncClient(timeout=20) as client,
            client.stream("GET", f"{app.url}/stream", headers={"Host": "hello.example", **ALLOWED}) as response,
        ):
            assert (await anext(response.aiter_text())).startswith("data: 0\n")  # long before the last one is made


async def test_rate_limits_count_after_the_token_and_by_prefix(app: Gateway, short_path: Path) -> None:
    limits = [
        {"prefix": "/slow", "key": {"type": "ip_address"}, "rps": 1 / 60, "burst": 1},
        {"prefix": "/by-key", "key": {"type": "header", "header": "X-Key"}, "rps": 1 / 60, "burst": 0},
    ]
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0], rate_limits=limits)
        assert {(await app.request("hello", "/slow", headers={})).status_code for _ in range(4)} == {403}
        assert [(await app.request("hello", "/slow")).status_code for _ in range(3)] == [200, 200, 429]
        assert {(await app.request("hello", "/")).status_code for _ in range(5)} == {200}
        keyed = [
            (await app.request("hello", "/by-key", headers={**ALLOWED, "X-Key": key})).status_code for key in "aab"
        ]
        assert keyed == [200, 429, 200]


async def test_usage_is_told_of_what_replicas_got(app: Gateway, short_path: Path) -> None:
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        await app.publish("empty")
        for _ in range(3):
            await app.request("hello")
        await app.request("hello", headers={})
        await app.request("hello", "/", method="POST", content=b"x" * 1_000_001)
        await app.request("empty")

        async def usage() -> dict[str, int]:
            collected = await app.api("/api/stats/collect")
            return {entry["run_name"]: entry["stats"]["60"]["requests"] for entry in collected}

        await eventually(usage, {"hello": 3, "empty": 1})


async def test_models_are_served_at_the_entrypoint_and_counted_as_the_services(
    app: Gateway, short_path: Path
) -> None:
    options = {"openai": {"model": {"type": "chat", "name": "tiny", "format": "openai", "prefix": "/v1"}}}
    async with replicas(short_path, "one") as made:
        await app.publish("llm", made["one"][0], options=options)
        entrypoint = {"domain": "gateway.example", "https": False}
        await app.api("/api/registry/main/entrypoints/register", entrypoint)
        async with openai.AsyncOpenAI(
            api_key=TOKEN, base_url=app.url, default_headers={"Host": "gateway.example"}, max_retries=0
        ) as client:
            assert [model.id async for model in client.models.list()] == ["tiny"]
            answer = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "Hi"}], extra_body={"own": 1}
            )
        assert answer.model_extra is not None
        assert answer.model_extra["echo"]["own"] == 1
        head = made["one"][1].heads[-1]
        assert head["host"] == "llm.example"
        assert "authorization" not in head
        preflight = await app.request("llm", "/v1/x", method="OPTIONS", headers={"Origin": "https://site"})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, "*")
        assert (await app.request("llm", "/v1/x")).headers["access-control-allow-origin"] == "*"
