"""Several processes that listen on the same port, on one host."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.fixtures.ports import take_free_port
from tests.integration.agent.harness import AgentProcess, until

from dstack.agent.protocol import RUNNING, TaskSpec

SERVER = """
import http.server, json, os, sys, threading, urllib.request
port = int(sys.argv[1]) if len(sys.argv) > 1 else int(os.environ["DSTACK_SERVICE_PORT"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told = {"name": os.environ["NAME"], "told": os.environ["DSTACK_SERVICE_PORT"]}
        if self.path == "/self":  # by the port that the program knows
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                told["reached"] = json.load(answer)["name"]
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(http.server.ThreadingHTTPServer):
    address_family = __import__("socket").AF_INET6 if ":" in os.environ["ADDRESS"] else 2
Server((os.environ["ADDRESS"], port), Handler).serve_forever()
"""


@pytest.fixture
async def agent() -> AsyncIterator[AgentProcess]:
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        running = AgentProcess(Path(folder))
        await running.start()
        yield running
        await running.clean_up()


def replica(port: int, name: str, *arguments: str, address: str = "127.0.0.1", **fields: object) -> TaskSpec:
    env = {"NAME": name, "ADDRESS": address}
    data = {
        "id": str(uuid.uuid4()), "name": name, "executor": "process", "env": env, "network_mode": "bridge",
        "ports": [port], "commands": [sys.executable, "-c", SERVER, *arguments],
    }  # fmt: skip
    return TaskSpec.from_json({**data, **fields})


async def get(port: int, path: str = "/") -> dict[str, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    found: dict[str, str] = json.loads(answer.split(b"\r\n\r\n", 1)[1])
    return found


async def host_port(agent: AgentProcess, spec: TaskSpec) -> int:
    """Once the task listens there."""
    await agent.client.put_task(spec)

    async def listens() -> bool:
        state = await agent.client.get_task(spec.id)
        assert state.status != "ended", state
        if state.status != RUNNING:
            return False
        try:
            await get(state.ports[0]["host"])
        except (OSError, IndexError):
            return False
        return True

    await until(listens)
    return (await agent.client.get_task(spec.id)).ports[0]["host"]


async def test_replicas_with_one_fixed_port_each_get_their_own(agent: AgentProcess) -> None:
    port = take_free_port()
    first = await host_port(agent, replica(port, "first", str(port)))
    second = await host_port(agent, replica(port, "second", str(port)))
    third = await host_port(agent, replica(port, "third", str(port), address="::"))
    assert first == port
    assert len({first, second, third}) == 3
    for where, name in ((first, "first"), (second, "second"), (third, "third")):
        assert await get(where, "/self") == {"name": name, "told": str(where), "reached": name}


async def test_a_replica_may_listen_where_it_is_told(agent: AgentProcess) -> None:
    port = take_free_port()
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", port))
        where = await host_port(agent, replica(port, "told"))
    assert where != port
    assert (await get(where))["told"] == str(where)


PYTHON = "/usr/bin/python3"
"""One that every user may run."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run jobs of other users")
@pytest.mark.skipif(not os.path.exists(PYTHON), reason="the system has no Python of its own")
async def test_no_rights_are_needed(agent: AgentProcess) -> None:
    port = take_free_port()
    await host_port(agent, replica(port, "first", str(port)))
    command = [PYTHON, "-c", SERVER, str(port)]
    where = await host_port(agent, replica(port, "second", user="nobody", commands=command))
    assert (await get(where, "/self"))["reached"] == "second"
