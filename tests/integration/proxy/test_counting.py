"""What the proxy's stats tell of requests that went well, or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.integration.proxy.conftest import Proxy, Replica

from dstack.proxy.stats import Counts


def counts(proxy: Proxy, run: str = "s") -> Counts:
    return proxy.deps.stats.windows(run)[300]


async def test_answers_and_their_beginnings_are_counted(proxy: Proxy) -> None:
    for path in ("/", "/chunked", "/until-close"):
        await proxy.exchange(proxy.get(path))
    seen = counts(proxy)
    assert (seen.requests, seen.errors, seen.answered) == (3, 0, 3)
    assert 0 < seen.waited <= seen.seconds
    assert sum(seen.latency.values()) == sum(seen.first_byte.values()) == 3
    assert proxy.deps.stats.in_flight("s") == 0


@pytest.mark.parametrize("path", ["/die-before", "/die-mid", "/die-chunked", "/silent", "/ambiguous"])
async def test_an_answer_that_is_not_whole_is_an_error(proxy: Proxy, path: str) -> None:
    await proxy.exchange(proxy.get(path))
    assert (counts(proxy).requests, counts(proxy).errors) == (1, 1)


async def test_what_is_the_clients_fault_is_none(proxy: Proxy, replica: Replica) -> None:
    await proxy.exchange(proxy.get("/", "Content-Length: 10", method="POST") + b"half")
    replica.lost.clear()
    reader, writer = await proxy.connect()
    writer.write(proxy.get("/stream"))
    await reader.readuntil(b"tick")
    writer.transport.abort()
    await replica.lost.wait()
    assert (counts(proxy).requests, counts(proxy).errors) == (2, 0)


async def test_tokens_of_models_are_read_off_their_answers(proxy: Proxy) -> None:
    proxy.services["main", "model"] = replace(proxy.services["main", "model"], counts_tokens=True)
    usage = b'{"usage": {"prompt_tokens": 3, "completion_tokens": 40}}'
    for run in ("model", "s"):  # the replica answers with what it was sent
        request = proxy.get("/", f"Content-Length: {len(usage)}", method="POST", run=run)
        assert usage in await proxy.exchange(request + usage)
    assert (counts(proxy, "model").prompt_tokens, counts(proxy, "model").completion_tokens) == (3, 40)
    assert counts(proxy, "s").prompt_tokens == 0
