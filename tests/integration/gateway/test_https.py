"""Certificates from a real certificate authority, and what TLS clients of a gateway see."""

from __future__ import annotations

import asyncio
import ssl
from asyncio.subprocess import DEVNULL
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.fixtures.pebble import Pebble
from tests.integration.gateway.conftest import ALLOWED, TOKEN, Gateway, replicas, serving

from dstack.proxy.gateway.app import make_app


class ToGateway(httpx.AsyncHTTPTransport):
    """All names are the gateway's."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(verify=context)
        self._port = port

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        request.extensions = {**request.extensions, "sni_hostname": name}
        return await super().handle_async_request(request)


async def test_services_and_models_over_https_until_their_certificates_are_renewed(
    gateway: Gateway,
    start_pebble: Callable[[int], Pebble],
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pebble = await asyncio.to_thread(start_pebble, gateway.settings.http_port)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pebble.bundle))
    folders = [part for name in ("work", "logs") for part in (f"--{name}-dir", str(short_path / name))]
    certbot = ("certbot", "--config-dir", str(gateway.settings.letsencrypt_dir), *folders)
    gateway = replace(gateway, settings=replace(gateway.settings, certbot=certbot))
    context = ssl.create_default_context(cafile=str(pebble.roots))
    options = {"openai": {"model": {"type": "chat", "name": "tiny", "format": "openai", "prefix": "/v1"}}}
    async with (
        replicas(short_path, "one") as made,
        serving(make_app(gateway.settings), port=gateway.settings.app_port),
        httpx.AsyncClient(transport=ToGateway(gateway.settings.https_port, context), timeout=30) as client,
    ):
        await gateway.api("/api/config", {"acme_server": pebble.directory})
        await gateway.publish("hello", made["one"][0], https=True, options=options)
        await gateway.api("/api/registry/main/entrypoints/register", {"domain": "gateway.example", "https": True})
        response = await client.get("https://hello.example/x", headers=ALLOWED)
        assert response.json()["replica"] == "one"
        assert made["one"][1].heads[-1]["x-forwarded-proto"] == "https"
        moved = await gateway.request("hello", "/x?y=1", headers={})
        port = gateway.settings.https_port
        assert (moved.status_code, moved.headers["location"]) == (301, f"https://hello.example:{port}/x?y=1")
        await models_answer(client)
        await check_other_hosts(gateway)

        pebble.forget("elsewhere.example")
        body = {"id": "x", "run_name": "x", "domain": "elsewhere.example", "https": True, "auth": True}
        body |= {"client_max_body_size": 0, "ssh_private_key": ""}
        status, answer = await gateway.call("/api/registry/main/services/register", body)
        assert status == 400
        assert "The name must resolve to this gateway" in answer["detail"]
        assert not (gateway.settings.sites_dir / "443-elsewhere.example.conf").exists()

        live = gateway.settings.letsencrypt_dir / "live/hello.example/fullchain.pem"
        before = live.read_text()
        renew = ["renew", "--force-renewal", "--no-random-sleep-on-renew", "-q"]
        process = await asyncio.create_subprocess_exec(*certbot, *renew)
        assert await process.wait() == 0
        assert live.read_text() != before
        assert (await client.get("https://hello.example/x", headers=ALLOWED)).status_code == 200


async def models_answer(client: Any) -> None:
    models = openai.AsyncOpenAI(
        api_key=TOKEN, base_url="https://gateway.example", http_client=client, max_retries=0
    )
    assert [model.id async for model in models.models.list()] == ["tiny"]
    answer = await models.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}])
    assert answer.object == "chat.completion"


async def check_other_hosts(gateway: Gateway) -> None:
    """B20: hosts that nobody published are 404, and TLS is 1.2 or later, for them too."""
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    port = gateway.settings.https_port
    async with httpx.AsyncClient(transport=ToGateway(port, anyone)) as client:
        assert (await client.get("https://unknown.example/", headers=ALLOWED)).status_code == 404
    for name in ("hello.example", "unknown.example"):
        for version, is_accepted in (("-tls1_1", False), ("-tls1_2", True)):
            command = ["openssl", "s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-servername", name]
            process = await asyncio.create_subprocess_exec(
                *command, "-connect", f"127.0.0.1:{port}", stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
            )
            assert (await process.wait() == 0) is is_accepted
