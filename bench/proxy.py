"""Requests/s through the proxy as a share of nginx's as a reverse proxy to the same backend, in the same run.

    python bench/proxy.py [--seconds 3] [--connections 1,32,256]

Starts nginx with a 1 KB and a 10 MB file, a second nginx (one worker) as a reverse proxy with kept-alive
connections to it, and our protocol under uvicorn (one process, `auth: true`); loads them in turn with wrk.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "bench-token"
"""Known to `bench.proxy_server`."""
SERVICE_PATH = "/proxy/services/main/bench"

NGINX = """
daemon off; worker_processes 1; pid {dir}/{name}.pid; error_log {dir}/{name}.err crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000000; client_max_body_size 0;
  client_body_temp_path {dir}/{name}-1; proxy_temp_path {dir}/{name}-2; fastcgi_temp_path {dir}/{name}-3;
  uwsgi_temp_path {dir}/{name}-4; scgi_temp_path {dir}/{name}-5;
  {body}
}}
"""
BACKEND = "server {{ listen 127.0.0.1:{port} backlog=4096; root {dir}/www; }}"
REVERSE = """
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://backend; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_set_header Host $host; }} }}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def start_nginx(folder: Path, name: str, body: str) -> subprocess.Popen[bytes]:
    path = folder / f"{name}.conf"
    path.write_text(NGINX.format(dir=folder, name=name, body=body))
    return subprocess.Popen(["nginx", "-p", str(folder), "-c", str(path), "-e", str(folder / f"{name}.err")])


def wrk(port: int, path: str, connections: int, seconds: float) -> tuple[float, float, float, float, int]:
    """Requests/s, p50 and p99 in ms, MB/s, answers that failed."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-H",
        f"Authorization: Bearer {TOKEN}",
    ]
    text = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True
    ).stdout
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0])
    p50, p99 = (_milliseconds(re.findall(rf"{p}%\s+([\d.]+\w+)", text)[0]) for p in (50, 99))
    failed = sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    for line in re.findall(r"Socket errors:.*", text):
        failed += sum(int(number) for number in re.findall(r"\d+", line))
    amount, unit = re.findall(r"Transfer/sec:\s+([\d.]+)(\w+)", text)[0]
    return rate, p50, p99, float(amount) * {"B": 1 / 1048576, "KB": 1 / 1024, "MB": 1, "GB": 1024}[unit], failed


def cpu_seconds(pid: int) -> float:
    """Of a process and its children: on a busy machine a steadier measure than requests/s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(int(child)) for child in children)


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def run(seconds: float, connection_counts: list[int]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-proxy-"))
    folder.chmod(0o755)
    www = folder / "www"
    www.mkdir()
    (www / "1k").write_bytes(b"x" * 1024)
    (www / "10m").write_bytes(b"x" * 10 * 1024 * 1024)
    backend, reverse, ours, asgi = free_port(), free_port(), free_port(), free_port()
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    processes = [
        start_nginx(folder, "backend", BACKEND.format(port=backend, dir=folder)),
        start_nginx(folder, "reverse", REVERSE.format(port=reverse, backend=backend)),
        *(
            subprocess.Popen(
                [sys.executable, "-m", "bench.proxy_server", str(port), str(backend), design], cwd=ROOT, env=env
            )
            for port, design in ((ours, "protocol"), (asgi, "asgi"))
        ),
    ]
    pids = {reverse: processes[1].pid, ours: processes[2].pid, asgi: processes[3].pid}
    try:
        for port in (backend, reverse, ours, asgi):
            wait_for_port(port)
        print(
            f"{'':26}{'requests/s':>12}{'share':>8}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}{'CPU us/request':>16}"
        )
        for connections in connection_counts:
            base = 0.0
            for name, port, prefix in (
                ("nginx", reverse, ""), ("ours", ours, SERVICE_PATH), ("uvicorn, no forwarding", asgi, ""),
            ):  # fmt: skip
                before = cpu_seconds(pids[port])
                rate, p50, p99, _, failed = wrk(port, prefix + "/1k", connections, seconds)
                if not rate:
                    raise SystemExit(f"{name} answered nothing")
                cpu = (cpu_seconds(pids[port]) - before) / (rate * seconds) * 1e6
                base = base or rate
                label = f"{connections:>4} {name}"
                print(f"{label:26}{rate:>12.0f}{rate / base:>8.2f}{p50:>9.3f}{p99:>9.3f}{failed:>8}{cpu:>16.1f}")
        for name, port, prefix in (("nginx", reverse, ""), ("ours", ours, SERVICE_PATH)):
            *_, megabytes, failed = wrk(port, prefix + "/10m", 4, seconds)
            print(f"10 MB bodies, {name:12}{megabytes:>12.0f} MB/s{'':14}{failed:>8} failed")
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", default="1,32,256")
    args = parser.parse_args()
    run(args.seconds, [int(count) for count in args.connections.split(",")])


if __name__ == "__main__":
    main()
