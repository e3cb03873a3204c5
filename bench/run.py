"""Runs the benchmarks and prints one table: what is promised, what was measured on this machine.

`python -m bench.run` runs all, `python -m bench.run NAME…` some, `--list` names them. Nothing here is asserted:
the figures depend on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import (
    api,
    attach,
    balancing,
    command,
    gateway,
    jobs,
    logs,
    many_hosts,
    many_runs,
    proxy_load,
    proxying,
    server,
    ssh_door,
    ssh_fleet,
)
from bench.measure import Benchmark, Result

BENCHMARKS: list[Benchmark] = [*command.BENCHMARKS, *server.BENCHMARKS, *jobs.BENCHMARKS, *api.BENCHMARKS]
BENCHMARKS += [
    *logs.BENCHMARKS,
    *many_runs.BENCHMARKS,
    *proxying.BENCHMARKS,
    *balancing.BENCHMARKS,
    *proxy_load.BENCHMARKS,
    *ssh_door.BENCHMARKS,
    *attach.BENCHMARKS,
    *ssh_fleet.BENCHMARKS,
    *many_hosts.BENCHMARKS,
    *gateway.BENCHMARKS,
]
ON_REQUEST: list[Benchmark] = [*proxy_load.ON_REQUEST]
"""Only run where they are named."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measures the budgets.")
    parser.add_argument("names", nargs="*", help="benchmarks to run; all but the long ones without any")
    parser.add_argument("--list", action="store_true", help="name the benchmarks")
    arguments = parser.parse_args()
    if arguments.list:
        print(
            "\n".join(f"{benchmark.__name__:24} {benchmark.__doc__}" for benchmark in [*BENCHMARKS, *ON_REQUEST])
        )
        return 0
    known = {benchmark.__name__: benchmark for benchmark in [*BENCHMARKS, *ON_REQUEST]}
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(known)}")
    results: list[Result] = []
    failed = False
    for name in arguments.names or [benchmark.__name__ for benchmark in BENCHMARKS]:
        print(f"… {name}", file=sys.stderr, flush=True)
        try:
            with tempfile.TemporaryDirectory(prefix="dstack-bench-") as folder:
                results += known[name](Path(folder))
        except Exception as error:  # noqa: BLE001 (one broken benchmark must not hide the others' figures)
            traceback.print_exc()
            results.append(
                Result(name, "", f"failed: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}")
            )
            failed = True
    print_table(results)
    return 1 if failed else 0


def print_table(results: list[Result]) -> None:
    """One row a figure."""
    load = os.getloadavg()[2]
    title = f"{os.cpu_count()} cores, Python {platform.python_version()}, load (15 min) {load:.1f}"
    table = Table(title=title)
    for column in ("what", "target", "measured", ""):
        table.add_column(column)
    for result in results:
        table.add_row(result.what, result.target, result.measured, result.verdict)
    Console(width=110).print(table)


if __name__ == "__main__":
    sys.exit(main())
