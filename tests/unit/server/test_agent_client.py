"""The client of agents is not for use inside a database transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dstack.agent.protocol import ConnectRequest, ExecRequest
from dstack.core.errors import Unreachable
from dstack.server.guards import InsideTransaction, inside_transaction
from dstack.server.hosts.agent_client import AgentClient


async def first_chunk(client: AgentClient) -> None:
    async for _ in client.follow_logs("id"):
        return


async def first_event(client: AgentClient) -> None:
    async for _ in client.events():
        return


@pytest.mark.parametrize(
    "call",
    [
        AgentClient.info,
        AgentClient.list_tasks,
        first_chunk,
        first_event,
        lambda client: client.put_file("id", "name", b""),
        lambda client: client.exec("id", ExecRequest("ls")),
        lambda client: client.connect("id", ConnectRequest(port=80)),
        lambda client: client.connect_protocol("id", ConnectRequest(port=80), asyncio.Protocol()),
    ],
)
async def test_a_call_inside_a_transaction_is_a_mistake_of_the_program(
    tmp_path: Path, call: Callable[[AgentClient], Awaitable[Any]]
) -> None:
    client = AgentClient.on_socket(str(tmp_path / "nobody"))
    with inside_transaction(), pytest.raises(InsideTransaction, match="the agent was used inside"):
        await call(client)
    with pytest.raises(Unreachable):
        await call(client)
