"""What a gateway keeps: over restarts, refused changes, cut connections, and a log that is rotated."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from tests.fixtures.plain_sshd import Sshd
from tests.fixtures.processes import wait_until
from tests.integration.gateway.conftest import Backend, Gateway, eventually, replicas, serving

from dstack.proxy.gateway.app import make_app


async def test_a_restarted_app_knows_all_that_was_published(gateway: Gateway, short_path: Path) -> None:
    async with replicas(short_path, "one") as made:
        async with serving(make_app(gateway.settings), port=gateway.settings.app_port):
            await gateway.publish("hello", made["one"][0])
            assert (await gateway.request("hello")).status_code == 200
        for path in gateway.settings.sites_dir.glob("443-*"):
            path.unlink()
        async with serving(make_app(gateway.settings), port=gateway.settings.app_port):
            assert (await gateway.request("hello")).status_code == 200
            listed = await gateway.api("/api/services/list")
            service = {
                "id": "run-hello",
                "project_name": "main",
                "run_name": "hello",
                "replicas": [{"id": "hello-0"}],
            }
            assert listed == {"services": [service]}


async def test_a_state_file_that_cannot_be_read_is_kept_aside(gateway: Gateway) -> None:
    gateway.settings.dir.mkdir(exist_ok=True)
    gateway.settings.state_file.write_text('{"services": {"main"')
    async with serving(make_app(gateway.settings), port=gateway.settings.app_port):
        assert await gateway.api("/api/services/list") == {"services": []}
    assert len(list(gateway.settings.dir.glob("state-v2.json.unreadable-*"))) == 1


async def test_the_state_of_a_later_version_is_used_as_far_as_it_is_known(
    gateway: Gateway, short_path: Path
) -> None:
    async with replicas(short_path, "one") as made:
        async with serving(make_app(gateway.settings), port=gateway.settings.app_port):
            await gateway.publish("hello", made["one"][0])
        state = json.loads(gateway.settings.state_file.read_text())
        state |= {"version": 3, "something": "new"}
        state["services"]["main"]["hello"]["more"] = 1
        gateway.settings.state_file.write_text(json.dumps(state))
        async with serving(make_app(gateway.settings), port=gateway.settings.app_port):
            assert (await gateway.request("hello")).status_code == 200


async def test_what_nginx_refuses_changes_nothing(app: Gateway, short_path: Path) -> None:
    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        broken = app.settings.sites_dir / "user-site.conf"
        broken.write_text("nothing_known 1;\n")
        body = {"id": "run-other", "run_name": "other", "domain": "other.example", "https": False, "auth": True}
        body |= {"client_max_body_size": 0, "ssh_private_key": ""}
        status, answer = await app.call("/api/registry/main/services/register", body)
        assert status == 400
        assert "unknown directive" in answer["detail"]
        assert not (app.settings.sites_dir / "443-other.example.conf").exists()
        assert [entry["run_name"] for entry in (await app.api("/api/services/list"))["services"]] == ["hello"]
        broken.unlink()
        assert (await app.request("hello")).status_code == 200
        await app.api("/api/registry/main/services/register", body)


async def test_names_and_domains_are_taken_once(app: Gateway) -> None:
    await app.publish("hello")
    body = {"id": "run-hello", "run_name": "hello", "domain": "hello.example", "https": False, "auth": True}
    body |= {"client_max_body_size": 0, "ssh_private_key": ""}
    register = "/api/registry/main/services/register"
    await app.api(register, body)  # repeating is fine
    for changed, word in (({"id": "another"}, "another run"), ({"id": "x", "run_name": "x"}, "belongs to")):
        status, answer = await app.call(register, {**body, **changed})
        assert (status, word in answer["detail"]) == (400, True)
    for bad in ({"domain": "x.example; return 200"}, {"run_name": "a b"}, {"domain": "-x"}):
        assert (await app.call(register, {**body, **bad}))[0] == 422
    assert (await app.call("/api/registry/main/services/nobody/unregister", {}))[0] == 400
    assert (await app.call("/api/registry/main/services/hello/replicas/x/unregister", {}))[0] == 400
    await app.api("/api/registry/main/services/hello/set_id", {"id": "another"})
    await app.api(register, {**body, "id": "another"})


async def test_replicas_behind_ssh_and_a_connection_that_is_cut(app: Gateway, sshd: Sshd, free_port: int) -> None:
    backend = Backend("far")
    async with serving(backend.app, port=free_port):
        await app.publish("hello", ssh_private_key=sshd.identity.read_text())
        replica = {
            "job_id": "far",
            "app_port": free_port,
            "app_host": "127.0.0.1",
            "ssh_host": f"{sshd.user}@127.0.0.1",
            "ssh_port": sshd.port,
            "host_key": sshd.host_key,
        }
        register = "/api/registry/main/services/hello/replicas/register"
        status, answer = await app.call(
            register, {**replica, "host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA"}
        )
        assert (status, "Host key verification failed" in answer["detail"]) == (400, True)
        await app.api(register, replica)
        assert (await app.request("hello")).json()["replica"] == "far"
        await asyncio.to_thread(sshd.cut_connections)

        async def status_now() -> int:
            return (await app.request("hello")).status_code

        await eventually(status_now, 200)
        await app.api("/api/registry/main/services/hello/replicas/far/unregister", {})
        assert await status_now() == 503
        sockets = app.settings.runtime_dir
        await asyncio.to_thread(wait_until, lambda: os.listdir(sockets) == ["tokens"], what="the sockets to go")


async def test_usage_is_read_on_after_the_log_was_rotated(app: Gateway, short_path: Path) -> None:
    async def requests() -> int:
        stats: int = (await app.api("/api/stats/collect"))[0]["stats"]["300"]["requests"]
        return stats

    async with replicas(short_path, "one") as made:
        await app.publish("hello", made["one"][0])
        await app.request("hello")
        await eventually(requests, 1)
        app.settings.access_log.rename(app.settings.access_log.with_suffix(".1"))
        await app.request("hello")  # nginx writes to the old file until it is told
        process = await asyncio.create_subprocess_exec(*app.settings.nginx_reload[:-1], "reopen")
        assert await process.wait() == 0
        await eventually(lambda: asyncio.to_thread(app.settings.access_log.exists), True)
        await app.request("hello")
        await eventually(requests, 3)
