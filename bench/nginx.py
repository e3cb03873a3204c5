"""nginx as a backend and as a plain reverse proxy: what our proxy is compared with."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
from tests.e2e.harness import wait_for
from tests.e2e.ssh import is_listening

CONFIGURATION = """
daemon off; master_process off; pid {folder}/{name}.pid; error_log {folder}/{name}.err crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000000; client_max_body_size 0;
  client_body_temp_path {folder}/{name}-1; proxy_temp_path {folder}/{name}-2; fastcgi_temp_path {folder}/{name}-3;
  uwsgi_temp_path {folder}/{name}-4; scgi_temp_path {folder}/{name}-5;
  {body}
}}
"""
BACKEND = "server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}; }}"
REVERSE = """
  upstream files {{ server {files}; keepalive 512; keepalive_requests 1000000000; }}
  upstream replica {{ server {replica}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
    proxy_buffer_size 64k; proxy_buffers 16 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;
    proxy_request_buffering off;
    location / {{ proxy_pass http://files; }}
    location /replica/ {{ proxy_pass http://replica/; proxy_buffering off; }}
  }}
"""
"""Without temporary files and with large buffers, as well as it can with large bodies and streams."""


def files_command(folder: Path, port: int) -> list[str]:
    """Serves `/1k` and `/10m`, by one process."""
    files = folder / "files"
    files.mkdir()
    (files / "1k").write_bytes(b"x" * 1024)
    (files / "10m").write_bytes(b"x" * 10 * 1024 * 1024)
    return _command(folder, "files", BACKEND.format(port=port, folder=files))


@contextlib.contextmanager
def reverse_proxy(folder: Path, port: int, files: str, replica: str = "127.0.0.1:1") -> Iterator[psutil.Process]:
    """One process on `port`, with kept-alive connections to `files`, and to `replica` below `/replica/`."""
    command = _command(folder, "reverse", REVERSE.format(port=port, files=files, replica=replica))
    process = subprocess.Popen(command)
    try:
        wait_for("nginx", lambda: is_listening(port))
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=10)


def _command(folder: Path, name: str, body: str) -> list[str]:
    if shutil.which("nginx") is None:
        raise RuntimeError("nginx is not installed")
    path = folder / f"{name}.conf"
    path.write_text(CONFIGURATION.format(folder=folder, name=name, body=body))
    return ["nginx", "-p", str(folder), "-c", str(path), "-e", str(folder / f"{name}.err")]
