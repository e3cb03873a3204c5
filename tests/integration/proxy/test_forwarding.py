"""Raw sockets through the proxy to a replica that misbehaves on demand."""

from __future__ import annotations

import asyncio
import dataclasses
import socket

import pytest
from tests.integration.proxy.conftest import Proxy, Replica


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


async def test_b2_the_target_is_passed_byte_for_byte(proxy: Proxy, replica: Replica) -> None:
    answer = await proxy.exchange(proxy.get("/a%2Fb//../c?x=%20&y?"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nServer: replica\r\n")
    assert answer.endswith(b"\r\n\r\nbody:")
    assert replica.heads[0].startswith(b"GET /a%2Fb//../c?x=%20&y? HTTP/1.1\r\nHost: example\r\n")


async def test_without_strip_prefix_the_whole_path_is_sent(proxy: Proxy, replica: Replica) -> None:
    await proxy.exchange(proxy.get("/x").replace(b"main/s/", b"main/whole/"))
    assert replica.heads[0].startswith(b"GET /proxy/services/main/whole/x HTTP/1.1\r\n")
    assert b"X-Forwarded-Prefix" not in replica.heads[0]


async def test_b1_the_platforms_token_never_reaches_a_replica(proxy: Proxy, replica: Replica) -> None:
    await proxy.exchange(proxy.get("/", "X-Forwarded-For: 6.6.6.6", "Keep-Alive: 9", "X-Mine: 1"))
    head = replica.heads[0]
    assert b"good" not in head
    assert b"6.6.6.6" not in head
    assert b"Keep-Alive" not in head
    assert b"X-Mine: 1\r\n" in head
    assert b"X-Forwarded-For: 127.0.0.1\r\n" in head
    assert b"X-Forwarded-Prefix: /proxy/services/main/s\r\n" in head


async def test_b1_the_header_of_an_open_service_is_its_own(proxy: Proxy, replica: Replica) -> None:
    await proxy.exchange(proxy.get("/").replace(b"main/s/", b"main/open/"))
    assert b"Authorization: Bearer good\r\n" in replica.heads[0]


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"main/s/", b"main/unknown/", 404),
        (b"main/s/", b"nowhere/s/", 404),
        (b"Bearer good", b"Bearer bad", 403),
        (b"Bearer good", b"Basic good", 403),
        (b"main/s/ ", b"main/s ", 308),
        (b"GET /", b"TRACE /", 405),
        (b"Host: example", b"Host: example\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400),
    ],
)
async def test_the_proxys_own_answers(proxy: Proxy, replica: Replica, old: bytes, new: bytes, status: int) -> None:
    answer = await proxy.exchange(proxy.get("/").replace(old, new))
    assert status_of(answer) == status
    assert b'{"detail": "' in answer
    assert replica.heads == []
    if status == 308:
        assert b"Location: /proxy/services/main/s/\r\n" in answer


async def test_an_unknown_service_is_404_before_auth(proxy: Proxy) -> None:
    answer = await proxy.exchange(proxy.get("/").replace(b"main/s/", b"main/x/").replace(b"good", b"bad"))
    assert status_of(answer) == 404


async def test_a_route_that_has_to_be_awaited(proxy: Proxy) -> None:
    data = proxy.get("/", "Content-Length: 3", method="POST").replace(b"main/s/", b"main/late/") + b"abc"
    assert (await proxy.exchange(data)).endswith(b"body:abc")


async def test_services_and_the_api_alternate_on_one_connection_in_order(proxy: Proxy, replica: Replica) -> None:
    post = proxy.get("/one", "Content-Length: 3", method="POST", close=False) + b"abc"
    api = b"POST /api/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    missing = proxy.get("/", close=False).replace(b"main/s/", b"main/none/")
    answer = await proxy.exchange(post + api + missing + api + post + proxy.get("/end"))
    bodies = [part.split(b"\r\n\r\n")[1] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert bodies[0] == bodies[4] == b"body:abc"
    assert bodies[1] == bodies[3] == b"asgi /api/x hi"
    assert b"detail" in bodies[2]
    assert bodies[5] == b"body:"
    assert replica.connections == 1


async def test_a_request_in_single_bytes(proxy: Proxy, replica: Replica) -> None:
    reader, writer = await proxy.connect()
    data = (
        proxy.get("/", "Transfer-Encoding: chunked", method="POST")
        + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n"
    )
    for byte in data:
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await reader.read(-1)).endswith(b"body:abcde")
    assert replica.bodies == [b"abcde"]
    writer.close()


async def test_bad_chunks_are_refused_and_the_replica_is_left(proxy: Proxy, replica: Replica) -> None:
    answer = await proxy.exchange(proxy.get("/", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n")
    assert status_of(answer) == 400
    await asyncio.wait_for(replica.lost.wait(), 5)


@pytest.mark.parametrize(
    "data", [b"GET /proxy/services/main/s/ HTTP/1.1\nHost: h\n\n", b"GET / HTTP/1.1\r\nA b\r\n\r\n"]
)
async def test_malformed_heads_are_refused_on_every_path(proxy: Proxy, data: bytes) -> None:
    assert status_of(await proxy.exchange(data)) == 400


async def test_an_oversized_head_is_431(proxy: Proxy) -> None:
    assert status_of(await proxy.exchange(b"GET / HTTP/1.1\r\nA: " + b"x" * 70000)) == 431


async def test_expect_100_continue(proxy: Proxy, replica: Replica) -> None:
    reader, writer = await proxy.connect()
    writer.write(proxy.get("/continue", "Expect: 100-continue", "Content-Length: 3", method="POST"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert (await reader.read(-1)).endswith(b"body:abc")
    writer.close()


async def test_a_refused_expectation_closes(proxy: Proxy) -> None:
    data = proxy.get("/", "Expect: 100-continue", "Content-Length: 3", method="POST", close=False)
    answer = await proxy.exchange(data.replace(b"good", b"bad"))
    assert status_of(answer) == 403
    assert b"Connection: close\r\n" in answer


async def test_chunked_answers(proxy: Proxy) -> None:
    assert (await proxy.exchange(proxy.get("/chunked"))).endswith(b"\r\n\r\nb\r\nhello world\r\n0\r\n\r\n")


async def test_chunked_answers_to_http_1_0_clients(proxy: Proxy) -> None:
    answer = await proxy.exchange(proxy.get("/chunked", version="1.0", close=False))
    assert b"Transfer-Encoding" not in answer
    assert answer.endswith(b"Connection: close\r\n\r\nhello world")


async def test_an_answer_that_ends_with_its_connection(proxy: Proxy) -> None:
    assert (await proxy.exchange(proxy.get("/until-close"))).endswith(b"all of it\r\n0\r\n\r\n")


@pytest.mark.parametrize("path", ["/", "/chunked", "/no-content"])
async def test_head_and_empty_answers_keep_the_connection(proxy: Proxy, path: str) -> None:
    answer = await proxy.exchange(proxy.get(path, method="HEAD", close=False) + proxy.get("/no-content"))
    parts = answer.split(b"HTTP/1.1 ")
    assert [part[:3] for part in parts[1:]] == [b"204" if path == "/no-content" else b"200", b"204"]
    assert parts[1].endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/die-mid", "/die-chunked"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_b4_a_replica_that_dies_mid_body_cuts_the_client(proxy: Proxy, path: str, version: str) -> None:
    reader, writer = await proxy.connect()
    writer.write(proxy.get(path, version=version, close=False))
    try:
        answer = await asyncio.wait_for(reader.read(-1), 5)
    except ConnectionResetError:
        assert (path, version) == ("/die-chunked", "1.0")
    else:
        assert status_of(answer) == 200
        assert b"0\r\n\r\n" not in answer.partition(b"\r\n\r\n")[2]
        assert (path, version) != ("/die-chunked", "1.0")
    finally:
        writer.close()


async def test_a_replica_that_dies_before_answering_is_502(proxy: Proxy) -> None:
    assert status_of(await proxy.exchange(proxy.get("/die-before", "Content-Length: 0", method="POST"))) == 502


async def test_an_ambiguous_answer_is_502(proxy: Proxy) -> None:
    assert status_of(await proxy.exchange(proxy.get("/ambiguous"))) == 502


async def test_a_silent_replica_is_504(proxy: Proxy, replica: Replica) -> None:
    assert status_of(await proxy.exchange(proxy.get("/silent"))) == 504
    await asyncio.wait_for(replica.lost.wait(), 5)


async def test_a_refused_connection_goes_to_the_next_replica(proxy: Proxy, replica: Replica) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{sock.getsockname()[1]}"
        key = ("main", "s")
        proxy.services[key] = dataclasses.replace(proxy.services[key], replicas=(dead, replica.address))
        for _ in range(8):
            assert status_of(await proxy.exchange(proxy.get("/"))) == 200
        proxy.services[key] = dataclasses.replace(proxy.services[key], replicas=(dead,))
        assert status_of(await proxy.exchange(proxy.get("/"))) == 502


async def test_a_client_that_leaves_ends_the_replicas_request(proxy: Proxy, replica: Replica) -> None:
    reader, writer = await proxy.connect()
    writer.write(proxy.get("/stream", close=False))
    await reader.readuntil(b"tick\n")
    writer.close()
    await asyncio.wait_for(replica.lost.wait(), 5)
    assert proxy.deps.stats.in_flight("s") == 0


async def test_an_early_answer_while_the_body_is_still_coming(proxy: Proxy) -> None:
    data = proxy.get("/early", "Content-Length: 100000", method="POST") + b"x" * 1000
    assert (await proxy.exchange(data)).endswith(b"\r\n\r\nbig")


async def test_large_bodies_stream_to_a_slow_reader(proxy: Proxy) -> None:
    reader, writer = await proxy.connect()
    writer.write(proxy.get("/large"))
    await reader.readuntil(b"\r\n\r\n")
    size = 0
    while data := await reader.read(300000):
        size += len(data)
        await asyncio.sleep(0)
    assert size == 20000000
    writer.close()


async def test_large_request_bodies(proxy: Proxy, replica: Replica) -> None:
    body = b"y" * 5000000
    answer = await proxy.exchange(proxy.get("/", f"Content-Length: {len(body)}", method="PUT") + body)
    assert len(answer) > len(body)
    assert replica.bodies == [body]


async def test_b3_websockets_pass_as_a_tunnel(proxy: Proxy) -> None:
    reader, writer = await proxy.connect()
    writer.write(proxy.get("/ws", "Connection: Upgrade", "Upgrade: websocket", close=False))
    head = await reader.readuntil(b"\r\n\r\n")
    assert status_of(head) == 101
    assert b"Upgrade: websocket\r\n" in head
    writer.write(b"abc")
    assert await reader.readexactly(3) == b"ABC"
    writer.close()


async def test_an_h2c_upgrade_is_ignored(proxy: Proxy, replica: Replica) -> None:
    answer = await proxy.exchange(
        proxy.get("/", "Upgrade: h2c", "HTTP2-Settings: x", "Connection: close, Upgrade", close=False)
    )
    assert status_of(answer) == 200
    assert b"pgrade" not in replica.heads[0]


async def test_requests_are_counted(proxy: Proxy) -> None:
    await proxy.exchange(proxy.get("/", close=False) * 3 + proxy.get("/die-before"))
    assert proxy.deps.stats.windows("s")[30].requests == 4
    assert proxy.deps.stats.in_flight("s") == 0


async def test_a_get_on_a_connection_that_went_stale_is_sent_again(proxy: Proxy, replica: Replica) -> None:
    """`/close-after` does not say that it closes: the pooled connection may be met while it ends."""
    for _ in range(20):
        answer = await proxy.exchange(proxy.get("/close-after", close=False) + proxy.get("/"))
        assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_b18_too_many_failed_attempts_are_told_to_wait(proxy: Proxy, replica: Replica) -> None:
    answer = await proxy.exchange(proxy.get("/").replace(b"Bearer good", b"Bearer one-too-many"))
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nRetry-After: 7\r\n" in answer
    assert replica.heads == []
