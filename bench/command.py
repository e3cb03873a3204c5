"""How quickly the command line answers."""

from __future__ import annotations

from pathlib import Path

from bench.measure import Benchmark, Result, at_most, dstack, median_seconds, running_server


def help_time(folder: Path) -> list[Result]:
    """`dstack --help`"""
    (folder / "home").mkdir()
    return [at_most("dstack --help", 0.15, median_seconds(lambda: dstack(folder, "--help")), "s")]


def ps_time(folder: Path) -> list[Result]:
    """`dstack ps` against a local server"""
    with running_server(folder):
        return [at_most("dstack ps", 0.3, median_seconds(lambda: dstack(folder, "ps")), "s")]


BENCHMARKS: list[Benchmark] = [help_time, ps_time]
