"""Before a request goes to a replica: it is held, limited, or answered for browsers (better B3, B7)."""

from __future__ import annotations

import asyncio

from tests.integration.proxy.conftest import MAX_BODY_BYTES, Proxy, Replica


def status(answer: bytes) -> int:
    return int(answer[9:12])


async def test_b7_a_request_wakes_the_service_and_is_held_until_it_is_there(
    proxy: Proxy, replica: Replica
) -> None:
    proxy.repo.waker = (replica.address,)
    data = proxy.get("/x", "Content-Length: 4", method="POST", run="sleepy") + b"body"
    answer = await proxy.exchange(data)
    assert (status(answer), answer[-9:]) == (200, b"body:body")
    assert proxy.repo.woken == ["sleepy"]
    assert proxy.deps.stats.windows("sleepy")[30].requests == 1
    assert proxy.deps.stats.in_flight("sleepy") == 0


async def test_b7_who_may_not_use_it_does_not_wake_it(proxy: Proxy) -> None:
    data = b"GET /proxy/services/main/sleepy/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert status(await proxy.exchange(data)) == 403
    assert proxy.repo.woken == []


async def test_b7_beyond_the_limits_it_is_503_with_retry_after(proxy: Proxy) -> None:
    waiting = [asyncio.ensure_future(proxy.exchange(proxy.get("/", run="sleepy"))) for _ in range(2)]
    while proxy.deps.stats.in_flight("sleepy") < 2:  # noqa: ASYNC110 - the proxy has no event for it
        await asyncio.sleep(0.01)
    at_once = await proxy.exchange(proxy.get("/", run="sleepy"))
    assert status(at_once) == 503
    assert b"too many requests wait" in at_once
    for answer in await asyncio.gather(*waiting):
        assert status(answer) == 503
        assert b"Retry-After: 10\r\n" in answer
    assert proxy.deps.stats.in_flight("sleepy") == 0


async def test_b7_a_client_that_leaves_is_not_held(proxy: Proxy) -> None:
    _, writer = await proxy.connect()
    writer.write(proxy.get("/", run="sleepy"))
    while not proxy.deps.stats.in_flight("sleepy"):  # noqa: ASYNC110 - the proxy has no event for it
        await asyncio.sleep(0.01)
    writer.close()
    while proxy.deps.stats.in_flight("sleepy"):  # noqa: ASYNC110 - the proxy has no event for it
        await asyncio.sleep(0.01)


async def test_b3_rate_limits(proxy: Proxy, replica: Replica) -> None:
    async def ask(path: str, *lines: str) -> bytes:
        return await proxy.exchange(proxy.get(path, *lines, run="limited"))

    assert [status(await ask("/a")) for _ in range(4)] == [200, 200, 429, 429]
    refused = await ask("/a")
    assert b"Retry-After: " in refused
    for same in ("/%61", "//a?x=1", "/free/../a"):
        assert status(await ask(same)) == 429
    assert [status(await ask("/free", "X-Key: one")) for _ in range(2)] == [200, 429]
    assert status(await ask("/free", "x-key:two")) == 200
    assert [status(await ask("/free")) for _ in range(2)] == [200, 200], "without the header there is no limit"
    assert proxy.deps.stats.windows("limited")[30].requests == len(replica.heads)


async def test_b3_browsers_of_any_site_may_use_a_model(proxy: Proxy, replica: Replica) -> None:
    preflight = proxy.get("/v1/x", "Origin: https://site", method="OPTIONS", run="model")
    answer = await proxy.exchange(preflight.replace(b"Bearer good", b"Bearer bad"))
    assert status(answer) == 204
    assert b"Access-Control-Allow-Methods: GET, POST, PUT, DELETE, PATCH, OPTIONS, HEAD\r\n" in answer
    assert b"Content-Length" not in answer
    assert replica.heads == []
    first, second = [await proxy.exchange(proxy.get("/cors", run="model")) for _ in range(2)]
    for answer in (first, second):
        assert answer.lower().count(b"access-control-allow-origin: *\r\n") == 1
        assert b"https://theirs" not in answer
    wrong = await proxy.exchange(proxy.get("/", run="model").replace(b"Bearer good", b"Bearer bad"))
    assert (status(wrong), b"Access-Control-Allow-Origin: *" in wrong) == (403, True)
    assert b"access-control" not in (await proxy.exchange(proxy.get("/plain"))).lower()


async def test_b3_a_body_that_is_too_large_is_refused(proxy: Proxy, replica: Replica) -> None:
    announced = proxy.get("/x", f"Content-Length: {MAX_BODY_BYTES + 1}", method="POST")
    assert status(await proxy.exchange(announced)) == 413
    assert replica.heads == []
    piece = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    chunked = proxy.get("/x", "Transfer-Encoding: chunked", method="POST", close=False)
    reader, writer = await proxy.connect()
    for number in (29, 1):  # the rest of what is too large is read, and the connection can be used again
        writer.write(chunked + piece * number + b"0\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        assert status(head) == (413 if number == 29 else 200)
        await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
    writer.close()
    assert [len(body) for body in replica.bodies] == [0x100000]
