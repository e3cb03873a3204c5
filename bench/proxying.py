"""The in-server proxy of a real server, `auth: true`, beside nginx as a plain reverse proxy to the backend."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.harness import ROOT, TOKEN, clean_environment

from bench import wrk
from bench.measure import Benchmark, Result, at_least, at_most, cpu_seconds
from bench.published import Published, published, stream

ROUNDS = 3
"""In each of which direct, nginx and ours have their turn, so that all meet the same machine."""
SECONDS = 3
STREAMS = 32
EVENTS = 250
EVERY = 0.02
"""Seconds between the events of one stream."""


@dataclass(frozen=True)
class Round:
    """1 KB, by each of the ways."""

    direct: wrk.Load
    nginx: wrk.Load
    ours: wrk.Load
    nginx_cpu: float
    ours_cpu: float
    """Seconds of a processor a request."""


def proxy_share(folder: Path) -> list[Result]:
    """requests per second and latency of 1 KB at 1, 32 and 256 connections, with auth on, beside nginx"""
    with published(folder) as pair:
        wrk.load(pair.urls("/1k")[2], TOKEN, 32, 2)
        results = []
        for connections in (1, 32, 256):
            rounds = [_round(pair, connections) for _ in range(ROUNDS)]
            results += _results(rounds, connections)
        script = wrk.differing_script(folder)
        differing = [_round(pair, 32, script) for _ in range(ROUNDS)]
        share = statistics.median(one.ours.rate / one.nginx.rate for one in differing)
        results.append(Result("proxy, 32 connections, no request like another", "", f"{share:.3g} of nginx"))
        return results


def _round(pair: Published, connections: int, script: Path | None = None) -> Round:
    direct, nginx, ours = pair.urls("/1k")
    without = wrk.load(direct, TOKEN, connections, SECONDS, script)
    before = cpu_seconds(pair.nginx)
    by_nginx = wrk.load(nginx, TOKEN, connections, SECONDS, script)
    nginx_cpu = (cpu_seconds(pair.nginx) - before) / (by_nginx.rate * SECONDS)
    before = cpu_seconds(pair.process)
    by_ours = wrk.load(ours, TOKEN, connections, SECONDS, script)
    ours_cpu = (cpu_seconds(pair.process) - before) / (by_ours.rate * SECONDS)
    return Round(without, by_nginx, by_ours, nginx_cpu, ours_cpu)


def _results(rounds: list[Round], connections: int) -> list[Result]:
    middle = statistics.median
    share = middle(one.ours.rate / one.nginx.rate for one in rounds)
    p50, p99 = (
        middle(one.ours.p50 - one.direct.p50 for one in rounds),
        middle(one.ours.p99 - one.direct.p99 for one in rounds),
    )
    by_nginx = (
        f"{middle(one.nginx.p50 - one.direct.p50 for one in rounds):.3g} ms, "
        f"{middle(one.nginx.p99 - one.direct.p99 for one in rounds):.3g} ms"
    )
    what = f"proxy, {connections} connection{'s' * (connections > 1)}"
    added = [Result("  added p50, p99", "", f"{p50:.3g} ms, {p99:.3g} ms")]
    if connections == 1:
        added = [at_most("  added p50", 0.1, p50, "ms"), at_most("  added p99", 1, p99, "ms")]
    rates = (
        f"{middle(one.ours.rate for one in rounds):,.0f}, {middle(one.nginx.rate for one in rounds):,.0f} req/s"
    )
    cpu = ", ".join(
        f"{middle(x) * 1e6:.3g}" for x in zip(*((one.ours_cpu, one.nginx_cpu) for one in rounds), strict=True)
    )
    whole = f"{what}, share of nginx"
    return [
        at_least(whole, 0.7, share, "of it") if connections == 32 else Result(whole, "", f"{share:.3g} of it"),
        Result("  ours, nginx", "", rates),
        Result("  processor time a request, ours, nginx", "", f"{cpu} us"),
        *added,
        Result("  the same of nginx", "", by_nginx),
    ]


def proxy_bodies(folder: Path) -> list[Result]:
    """MB per second of 10 MB bodies, down and up, beside nginx"""
    with published(folder) as pair:
        down, up = [], []
        script = wrk.upload_script(folder, 10)
        (_, nginx_up, ours_up) = (f"http://127.0.0.1:{port}{path}" for port, path in pair.replica_ways("/up"))
        for _ in range(ROUNDS):
            by_nginx, by_ours = (wrk.load(url, TOKEN, 4, SECONDS).megabytes for url in pair.urls("/10m")[1:])
            down.append((by_ours, by_nginx))
            by_nginx, by_ours = (wrk.load(url, TOKEN, 4, SECONDS, script).rate * 10 for url in (nginx_up, ours_up))
            up.append((by_ours, by_nginx))
        return [*_bodies("down", down), *_bodies("up", up)]


def _bodies(direction: str, rounds: list[tuple[float, float]]) -> list[Result]:
    share = statistics.median(ours / nginx for ours, nginx in rounds)
    ours, nginx = (statistics.median(one[place] for one in rounds) for place in (0, 1))
    return [
        at_least(f"proxy, 10 MB bodies {direction}, share of nginx", 0.7, share, "of it"),
        Result("  ours, nginx", "", f"{ours:,.0f}, {nginx:,.0f} MB/s"),
    ]


def proxy_streams(folder: Path) -> list[Result]:
    """events per second over 32 paced streams and the time to the first byte, beside none and nginx"""
    with published(folder) as pair:
        ways = pair.replica_ways(f"/stream?count={EVENTS}&every={EVERY}")
        seen = [[stream(folder, way, STREAMS, EVENTS) for way in ways] for _ in range(ROUNDS)]
    rates = [[one["events"] / one["seconds"] for one in round_] for round_ in seen]
    shares = [ours / direct for direct, _, ours in rates]
    added = [[one["first_ms"] - round_[0]["first_ms"] for one in round_[1:]] for round_ in seen]
    middle = statistics.median
    whole = sum(round_[2]["whole"] for round_ in seen)
    return [
        at_least(f"proxy, {STREAMS} paced streams, events", 0.95, middle(shares), "of those without it"),
        Result(
            "  events per second, direct, nginx, ours",
            "",
            ", ".join(f"{middle(x):,.0f}" for x in zip(*rates, strict=True)),
        ),
        Result("  whole", f"{STREAMS * ROUNDS}", f"{whole}", "ok" if whole == STREAMS * ROUNDS else "cut"),
        at_most("  added time to first byte, p50", 5, middle(ours for _, ours in added), "ms"),
        Result("  the same of nginx", "", f"{middle(nginx for nginx, _ in added):.3g} ms"),
        Result(
            "  an event's delay, p99, direct, nginx, ours",
            "",
            ", ".join(f"{middle(round_[way]['delay_p99_ms'] for round_ in seen):.3g}" for way in range(3)) + " ms",
        ),
    ]


def proxy_ssh_share(folder: Path) -> list[Result]:
    """the same where both go through one SSH forward, 32 connections"""
    command = [sys.executable, "-m", "bench.proxy_ssh", "--connections", "32"]
    environment = clean_environment(folder, PYTHONPATH=f"{ROOT / 'src'}:{ROOT}")
    output = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=folder
    ).stdout
    rates = dict(re.findall(r"^ *32 (\w+)[^\d\n]* +(\d+) ", output, re.MULTILINE))
    share = float(rates["ours"]) / float(rates["nginx"])
    return [
        at_least("proxy over SSH, 32 connections, share of nginx", 0.7, share, "of it"),
        Result("  proxy", "", f"{rates['ours']} req/s"),
        Result("  nginx", "", f"{rates['nginx']} req/s"),
    ]


BENCHMARKS: list[Benchmark] = [proxy_share, proxy_bodies, proxy_streams, proxy_ssh_share]
