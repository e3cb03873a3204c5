"""Images from a private registry, pulled by the host's Docker."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.fixtures.docker import DockerDaemon
from tests.integration.agent.test_container import DockerAgent, agent

__all__ = ["agent"]


@dataclass
class Registry:
    image: str
    username: str
    password: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def registry(docker_daemon: DockerDaemon, tmp_path: Path, free_port: int) -> Iterator[Registry]:
    missing = [name for name in ("docker-registry", "htpasswd") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    users = subprocess.run(["htpasswd", "-Bbn", "alice", "s3cret"], check=True, capture_output=True).stdout
    (tmp_path / "users").write_bytes(users)
    (tmp_path / "registry.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/images}}}}\n"
        f"http: {{addr: '127.0.0.1:{free_port}'}}\n"
        f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/users}}}}\n"
    )
    command = ["docker-registry", "serve", str(tmp_path / "registry.yml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    image = f"127.0.0.1:{free_port}/team/busybox:1"
    try:
        _wait(process, free_port)
        _push(docker_daemon, image, tmp_path / "docker-config")
        yield Registry(image, "alice", "s3cret", process)
    finally:
        process.terminate()
        process.wait(20)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    """Until it refuses whoever gives no password."""
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"docker-registry did not start (exit status {process.poll()})")


def _push(daemon: DockerDaemon, image: str, config: Path) -> None:
    registry = image.split("/", 1)[0]
    daemon.run("tag", daemon.image, image)
    environment = {**os.environ, "DOCKER_CONFIG": str(config)}
    docker = ["docker", "-H", f"unix://{daemon.socket}"]
    login = [*docker, "login", "-u", "alice", "--password-stdin", registry]
    subprocess.run(login, input=b"s3cret", env=environment, check=True, capture_output=True)
    subprocess.run([*docker, "push", "-q", image], env=environment, check=True, capture_output=True)
    daemon.run("rmi", image)


async def test_a_private_image_needs_the_right_password(agent: DockerAgent, registry: Registry) -> None:
    for password in ("", "wrong"):
        username = registry.username if password else ""
        task = agent.shell("x", image=registry.image, registry_username=username, registry_password=password)
        await agent.client.put_task(task)
        state = await agent.ended(task.id)
        assert state.reason == "creating_container_error"
        assert "`registry_auth` has the right user name and password" in state.message
    login = {"registry_username": registry.username, "registry_password": registry.password}
    task = agent.shell("echo pulled", image=registry.image, **login)
    await agent.client.put_task(task)
    assert (await agent.ended(task.id)).exit_status == 0
    assert await agent.output(task.id) == b"pulled\n"
    await asyncio.to_thread(agent.daemon.run, "rmi", "-f", registry.image)


async def test_an_image_that_is_not_there_is_told(agent: DockerAgent, registry: Registry) -> None:
    image = registry.image.replace("busybox", "nothing")
    login = {"registry_username": registry.username, "registry_password": registry.password}
    task = agent.shell("x", image=image, **login)
    await agent.client.put_task(task)
    assert f"there is no image {image} in the registry" in (await agent.ended(task.id)).message
