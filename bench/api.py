"""How many requests the REST API answers."""

from __future__ import annotations

from pathlib import Path

from bench.measure import Benchmark, Result, at_least, post_rate, running_server


def who_am_i(folder: Path) -> list[Result]:
    """`users/get_my_user`, 16 connections"""
    with running_server(folder) as server:
        rate = post_rate(server, "/api/users/get_my_user", {}, connections=16)
        return [at_least("users/get_my_user, 16 connections", 2000, rate, "req/s")]


BENCHMARKS: list[Benchmark] = [who_am_i]
