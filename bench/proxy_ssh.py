"""Requests/s through the proxy as a share of nginx's, both in front of the same SSH forward to the same backend.

    PYTHONPATH=src python -m bench.proxy_ssh [--seconds 3] [--connections 1,32]

The forward is one of `dstack.proxy.tunnels`, to an OpenSSH server of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.proxy import BACKEND, ROOT, SERVICE_PATH, cpu_seconds, free_port, start_nginx, wait_for_port, wrk
from bench.sshd import plain_sshd
from dstack.proxy.ssh_process import Destination
from dstack.proxy.tunnels import Tunnels

REVERSE = """
  upstream backend {{ server unix:{path}; keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://backend; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_set_header Host $host; }} }}
"""


def destination(arguments: list[str], folder: Path) -> Destination:
    """Where `plain_sshd` says that `ssh` gets in."""
    values = dict(itertools.pairwise(arguments))
    key = Path(values["-i"])
    (host_key,) = [path.read_text().split()[:2] for path in folder.glob("*.pub") if path.stem != key.name]
    return Destination("127.0.0.1", "root", int(values["-p"]), (key.read_text(),), " ".join(host_key))


def run(seconds: float, connection_counts: list[int]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-proxy-"))
    folder.chmod(0o755)
    (folder / "www").mkdir()
    (folder / "www" / "1k").write_bytes(b"x" * 1024)
    (folder / "keys").mkdir()
    backend, reverse, ours = free_port(), free_port(), free_port()
    loop = asyncio.new_event_loop()
    tunnels = Tunnels(folder / "tunnels")
    processes = [start_nginx(folder, "backend", BACKEND.format(port=backend, dir=folder))]
    with plain_sshd(folder / "keys") as arguments:
        try:
            where = destination(arguments, folder / "keys")
            path = loop.run_until_complete(tunnels.open(where, f"localhost:{backend}"))
            Path(path).parent.chmod(0o755)  # nginx's worker is another user
            Path(path).chmod(0o777)
            env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
            command = [sys.executable, "-m", "bench.proxy_server", str(ours), f"unix:{path}", "protocol"]
            processes.append(start_nginx(folder, "reverse", REVERSE.format(port=reverse, path=path)))
            processes.append(subprocess.Popen(command, cwd=ROOT, env=env))
            for port in (backend, reverse, ours):
                wait_for_port(port)
            pids = {reverse: processes[1].pid, ours: processes[2].pid}
            measured = ((reverse, "nginx", ""), (ours, "ours", SERVICE_PATH))
            _measure(seconds, connection_counts, measured, pids)
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(timeout=10)
            loop.run_until_complete(tunnels.stop())
            loop.close()
            shutil.rmtree(folder, ignore_errors=True)


def _measure(
    seconds: float,
    connection_counts: list[int],
    measured: tuple[tuple[int, str, str], ...],
    pids: dict[int, int],
) -> None:
    print(f"{'':20}{'requests/s':>12}{'share':>8}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}{'CPU us/request':>16}")
    for connections in connection_counts:
        base = 0.0
        for port, name, prefix in measured:
            before = cpu_seconds(pids[port])
            rate, p50, p99, _, failed = wrk(port, prefix + "/1k", connections, seconds)
            if not rate:
                raise SystemExit(f"{name} answered nothing")
            cpu = (cpu_seconds(pids[port]) - before) / (rate * seconds) * 1e6
            base = base or rate
            figures = f"{rate:>12.0f}{rate / base:>8.2f}{p50:>9.3f}{p99:>9.3f}{failed:>8}{cpu:>16.1f}"
            print(f"{connections:>4} {name:15}{figures}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", default="1,32")
    args = parser.parse_args()
    run(args.seconds, [int(count) for count in args.connections.split(",")])


if __name__ == "__main__":
    main()
