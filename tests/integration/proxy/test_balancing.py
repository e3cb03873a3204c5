"""Several replicas behind the proxy: which one gets what, and what happens when one is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from tests.integration.proxy.conftest import Proxy, Replica

from dstack.proxy.affinity import MAX_BODY_BYTES
from dstack.proxy.balancing import ByPrefix, BySession, LeastRequests, Policy
from dstack.proxy.repo import Service

AWAY = "127.0.0.1:1"


@pytest.fixture
async def replicas() -> AsyncIterator[list[Replica]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(3):
            replica = Replica()
            server = await stack.enter_async_context(await asyncio.start_server(replica.handle, "127.0.0.1", 0))
            replica.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            made.append(replica)
        yield made


def publish(proxy: Proxy, replicas: list[Replica], policy: Policy, *more: str) -> None:
    """As the service `main/many`."""
    addresses = (*more, *(replica.address for replica in replicas))
    proxy.services["main", "many"] = Service("many", "main", "many", True, True, addresses, balancing=policy)


def post(proxy: Proxy, body: bytes, *lines: str) -> bytes:
    return proxy.get("/x", f"Content-Length: {len(body)}", *lines, method="POST", run="many") + body


def chat(*texts: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text} for text in texts]}).encode()


def status(answer: bytes) -> int:
    return int(answer[9:12])


def used(replicas: list[Replica]) -> list[int]:
    return [len(replica.heads) for replica in replicas]


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 # the proxy has no event for it
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("policy", [None, LeastRequests(), ByPrefix(100, 2.0), BySession(b"x-session", None)])
async def test_a_replica_that_is_away_is_skipped_and_left_out(
    proxy: Proxy, replicas: list[Replica], policy: Policy
) -> None:
    publish(proxy, replicas, policy, AWAY)
    for number in range(40):
        answer = await proxy.exchange(post(proxy, chat(f"prompt {number}"), f"X-Session: {number}"))
        assert (status(answer), chat(f"prompt {number}") in answer) == (200, True)
    failing = proxy.deps.balancer.failing[AWAY]
    assert failing.failures <= 3, "it is asked again seldom"
    assert proxy.deps.balancer.in_flight == {}
    assert all(used(replicas))
    proxy.services["main", "many"] = replace(proxy.services["main", "many"], replicas=(AWAY,))
    assert status(await proxy.exchange(post(proxy, b"x"))) == 502


async def test_a_replica_that_is_back_is_used_again(proxy: Proxy, replicas: list[Replica]) -> None:
    now = 0.0
    proxy.deps.balancer._clock = lambda: now
    publish(proxy, replicas[:2], None)
    for _ in range(3):
        proxy.deps.balancer.failed(replicas[0].address, is_unreachable=True)
    for _ in range(10):
        assert status(await proxy.exchange(proxy.get("/", run="many"))) == 200
    assert used(replicas) == [0, 10, 0]
    now = 10.0
    while proxy.deps.balancer.failing:
        assert status(await proxy.exchange(proxy.get("/", run="many"))) == 200
    assert used(replicas)[0] == 1


async def test_a_replica_that_loses_requests_is_left_out(proxy: Proxy, replicas: list[Replica]) -> None:
    publish(proxy, replicas[:1], LeastRequests())
    for _ in range(3):
        assert status(await proxy.exchange(proxy.get("/die-before", run="many"))) == 502
    publish(proxy, replicas[:2], LeastRequests())
    for _ in range(6):
        assert status(await proxy.exchange(proxy.get("/", run="many"))) == 200
    assert used(replicas) == [3, 6, 0]


async def test_the_replica_with_the_fewest_requests_is_taken(proxy: Proxy, replicas: list[Replica]) -> None:
    publish(proxy, replicas, LeastRequests())
    streams = []
    for count in range(1, 7):
        _, writer = await proxy.connect()
        writer.write(proxy.get("/stream", run="many"))
        streams.append(writer)
        await until(lambda count=count: sum(used(replicas)) == count)
    assert used(replicas) == [2, 2, 2]
    for writer in streams:
        writer.close()
    await until(lambda: proxy.deps.balancer.in_flight == {})


async def test_prompts_that_begin_alike_go_to_one_replica(proxy: Proxy, replicas: list[Replica]) -> None:
    publish(proxy, replicas, ByPrefix(100, 1.25))
    for number in range(9):
        for turn in range(3):
            answer = await proxy.exchange(post(proxy, chat(f"prompt {number}", *"abc"[:turn])))
            assert status(answer) == 200
    firsts: dict[str, set[int]] = {}
    for index, replica in enumerate(replicas):
        for body in replica.bodies:
            firsts.setdefault(json.loads(body)["messages"][0]["content"], set()).add(index)
    assert len(firsts) == 9
    assert all(len(indexes) == 1 for indexes in firsts.values())
    assert sum(map(bool, used(replicas))) > 1


async def test_a_replica_with_too_many_requests_of_one_prompt_is_relieved(
    proxy: Proxy, replicas: list[Replica]
) -> None:
    publish(proxy, replicas, ByPrefix(100, 1.25))
    body = chat("the same")
    streams = []
    for count in range(1, 7):
        _, writer = await proxy.connect()
        writer.write(post(proxy, body).replace(b"/x ", b"/stream "))
        streams.append(writer)
        await until(lambda count=count: sum(used(replicas)) == count)
    assert max(used(replicas)) <= 3
    for writer in streams:
        writer.close()
    await until(lambda: proxy.deps.balancer.in_flight == {})


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("length", [0, 10, MAX_BODY_BYTES - 1, MAX_BODY_BYTES, MAX_BODY_BYTES * 3 + 1])
@pytest.mark.parametrize("away", [(), (AWAY,)])
async def test_bodies_pass_whole_however_they_are_framed(
    proxy: Proxy, replicas: list[Replica], length: int, away: tuple[str, ...]
) -> None:
    publish(proxy, replicas, ByPrefix(100, 1.25), *away)
    body = b'{"prompt": "' + b"x" * length + b'"}'
    framed = proxy.get("/x", "Transfer-Encoding: chunked", method="POST", run="many") + chunked(body, 5000)
    for request in (post(proxy, body), framed):
        answer = await proxy.exchange(request)
        assert (status(answer), answer.endswith(body)) == (200, True)
    assert {bytes(body) for replica in replicas for body in replica.bodies} == {body}


async def test_who_expects_100_is_told_to_go_on(proxy: Proxy, replicas: list[Replica]) -> None:
    publish(proxy, replicas, ByPrefix(100, 1.25))
    body = chat("Hi")
    reader, writer = await proxy.connect()
    head = post(proxy, body, "Expect: 100-continue").removesuffix(body)
    writer.write(head)
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    answer = await asyncio.wait_for(reader.read(-1), 10)
    writer.close()
    assert (status(answer), answer.endswith(body)) == (200, True)
    assert not any(b"Expect" in head for replica in replicas for head in replica.heads)


async def test_a_body_that_does_not_come_is_not_waited_for_for_ever(proxy: Proxy, replicas: list[Replica]) -> None:
    publish(proxy, replicas, ByPrefix(100, 1.25))
    assert status(await proxy.exchange(post(proxy, chat("Hi"))[:-5])) == 408
    assert used(replicas) == [0, 0, 0]
    _, writer = await proxy.connect()
    writer.write(post(proxy, chat("Hi"))[:-5])
    await until(lambda: proxy.deps.stats.in_flight("many"))
    writer.close()
    await until(lambda: not proxy.deps.stats.in_flight("many"))


async def test_sessions_by_header(proxy: Proxy, replicas: list[Replica]) -> None:
    publish(proxy, replicas, BySession(b"x-session", None))
    for number in range(12):
        for _ in range(2):
            await proxy.exchange(proxy.get(f"/{number}", f"X-Session: {number}", run="many"))
    assert all(count % 2 == 0 for count in used(replicas))
    assert sum(map(bool, used(replicas))) > 1


async def test_sessions_by_a_cookie(proxy: Proxy, replicas: list[Replica]) -> None:
    publish(proxy, replicas, BySession(None, b"tied"))
    answer = await proxy.exchange(proxy.get("/", run="many"))
    line = next(line for line in answer.split(b"\r\n") if line.startswith(b"Set-Cookie: "))
    assert line.endswith(b"; Path=/proxy/services/main/many/; HttpOnly; SameSite=Lax")
    cookie = line.removeprefix(b"Set-Cookie: ").split(b";")[0].decode()
    (first,) = (index for index, count in enumerate(used(replicas)) if count)
    for _ in range(10):
        answer = await proxy.exchange(proxy.get("/", f"Cookie: a=b; {cookie}", run="many"))
        assert b"Set-Cookie" not in answer
    assert used(replicas)[first] == 11
    publish(proxy, [replica for replica in replicas if replica is not replicas[first]], BySession(None, b"tied"))
    answer = await proxy.exchange(proxy.get("/", f"Cookie: {cookie}", run="many"))
    assert (status(answer), b"Set-Cookie: tied=" in answer, cookie.encode() in answer) == (200, True, False)
