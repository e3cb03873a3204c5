"""What many and long requests to services cost the server that carries them, and the users of its API."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.e2e.harness import TOKEN

from bench import wrk
from bench.measure import Benchmark, Result, at_most, seconds_without_processor
from bench.published import ListingRuns, Published, p99, program, published

OPEN_STREAMS = 1000
STREAM_SECONDS = 40
LOAD_SECONDS = 10
SOCKETS = 5000
AT_ONCE = "200"
"""Connections that are being opened."""
COMMON_LIMIT = ("prlimit", "--nofile=1024:")
"""As many open files as a shell usually gives; the server asks for more by itself."""
MEMORY_SECONDS = 45
LONG_SECONDS = 600


def open_streams(folder: Path) -> list[Result]:
    """1,000 streams of 40 s, all whole, and the API meanwhile"""
    with published(folder, *COMMON_LIMIT) as pair:
        listing = ListingRuns(pair.server)
        alone = listing.for_seconds(5)
        waited = seconds_without_processor(pair.process)
        port, path = pair.replica_ways(f"/stream?count={STREAM_SECONDS}&every=1")[2]
        before = pair.memory()
        arguments = ("streams", str(port), path, TOKEN, str(OPEN_STREAMS), AT_ONCE, str(STREAM_SECONDS))
        with program(folder, "bench.clients", *arguments) as clients:
            times = listing.until(clients)
            assert clients.stdout is not None
            seen = json.loads(clients.stdout.read())
        return [
            Result(
                f"{OPEN_STREAMS:,} open streams of {STREAM_SECONDS} s, whole",
                f"{OPEN_STREAMS:,}",
                f"{seen['whole']:,}",
                "ok" if seen["whole"] == OPEN_STREAMS else "cut",
            ),
            Result(
                "  an event's delay, p50, p99", "", f"{seen['delay_p50_ms']:.3g} ms, {seen['delay_p99_ms']:.3g} ms"
            ),
            at_most("  runs/list meanwhile, p99", 50, p99(times), "ms"),
            Result("  runs/list before, p99", "", f"{p99(alone):.3g} ms"),
            _starved(pair, waited, STREAM_SECONDS),
            Result(
                "  memory of the server afterwards, more than before by", "", f"{pair.memory() - before:.3g} MB"
            ),
        ]


def _starved(pair: Published, before: float, seconds: float) -> Result:
    """What makes a machine that does other work too slow for short answers, whatever the server does."""
    share = (seconds_without_processor(pair.process) - before) / seconds
    return Result("  of that time the server was ready to run but had no processor", "", f"{share:.0%}")


def idle_websockets(folder: Path) -> list[Result]:
    """memory of 5,000 WebSockets on which nothing is said"""
    with published(folder, *COMMON_LIMIT) as pair:
        port, path = pair.replica_ways("/ws")[2]
        wrk.load(pair.urls("/1k")[2], TOKEN, 32, 2)
        before = pair.memory()
        with program(folder, "bench.clients", "sockets", str(port), path, TOKEN, str(SOCKETS), AT_ONCE) as clients:
            assert clients.stdout is not None
            count = json.loads(clients.stdout.readline())["open"]
            grown = pair.memory() - before
        return [
            Result(
                f"{SOCKETS:,} idle WebSockets, open",
                f"{SOCKETS:,}",
                f"{count:,}",
                "ok" if count == SOCKETS else "refused",
            ),
            at_most("  memory of the server for them", 60, grown, "MB"),
        ]


def api_under_proxy_load(folder: Path) -> list[Result]:
    """`runs/list` while as many requests as possible go through the proxy, and while they go through nginx"""
    with published(folder) as pair:
        alone = ListingRuns(pair.server).for_seconds(5)
        results = []
        for connections in (32, 256):
            before = seconds_without_processor(pair.process)
            rate, times = _list_meanwhile(pair, pair.urls("/1k")[2], connections)
            starved = _starved(pair, before, LOAD_SECONDS)
            nginx_rate, nginx_times = _list_meanwhile(pair, pair.urls("/1k")[1], connections)
            results += [
                at_most(f"runs/list, {connections} connections at the proxy, p99", 50, p99(times), "ms"),
                Result("  p50, of how many", "", f"{times[len(times) // 2]:.3g} ms, {len(times)}"),
                starved,
                Result("  the same at nginx, p50, p99", "", _p50_and_p99(nginx_times)),
                Result("  requests to ours, to nginx meanwhile", "", f"{rate:,.0f}, {nginx_rate:,.0f} req/s"),
            ]
        return [*results, Result("  runs/list with no other load, p50, p99", "", _p50_and_p99(alone))]


def _list_meanwhile(pair: Published, url: str, connections: int) -> tuple[float, list[float]]:
    """Requests per second of that load, and the sorted milliseconds of `runs/list`."""
    with _load(wrk.command(url, TOKEN, connections, LOAD_SECONDS)) as process:
        times = ListingRuns(pair.server).until(process)
        assert process.stdout is not None
        return wrk.parse(process.stdout.read()).rate, times


def _p50_and_p99(times: list[float]) -> str:
    return f"{times[len(times) // 2]:.3g} ms, {p99(times):.3g} ms"


def proxy_memory(folder: Path) -> list[Result]:
    """memory of the server under load, at first and after three quarters of a minute"""
    return _memory(folder, MEMORY_SECONDS)


def proxy_memory_long(folder: Path) -> list[Result]:
    """the same, over 10 minutes"""
    return _memory(folder, LONG_SECONDS)


def _memory(folder: Path, seconds: int) -> list[Result]:
    """Small requests none of which is like another, large bodies and streams at once."""
    with published(folder) as pair, ExitStack() as loads:
        for url, connections, script in (
            (pair.urls("/1k")[2], 32, wrk.differing_script(folder)),
            (pair.urls("/10m")[2], 2, None),
            (_url(pair, "/up"), 2, wrk.upload_script(folder, 10)),
            (_url(pair, "/stream?count=20&every=0.01"), 32, None),
        ):
            loads.enter_context(_load(wrk.command(url, TOKEN, connections, seconds + 60, script)))
        time.sleep(seconds / 4)
        first = pair.memory()
        highest = first
        for _ in range(seconds * 3 // 4):
            time.sleep(1)
            highest = max(highest, pair.memory())
        return [
            at_most(f"memory under mixed load over {seconds} s, grown by", 5, pair.memory() - first, "MB"),
            Result(
                "  after a quarter of it, at the highest, at its end",
                "",
                f"{first:.4g}, {highest:.4g}, {pair.memory():.4g} MB",
            ),
        ]


def _url(pair: Published, path: str) -> str:
    port, below = pair.replica_ways(path)[2]
    return f"http://127.0.0.1:{port}{below}"


@contextmanager
def _load(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


BENCHMARKS: list[Benchmark] = [proxy_memory, open_streams, idle_websockets, api_under_proxy_load]
ON_REQUEST: list[Benchmark] = [proxy_memory_long]
"""Too long to run with all the others."""
