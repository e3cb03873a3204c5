"""The in-server proxy beside nginx on the same machine (`bench/proxy.py`)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.harness import clean_environment

from bench.measure import Benchmark, Result, at_least

ROOT = Path(__file__).resolve().parents[1]


def proxy_share(folder: Path) -> list[Result]:
    """requests per second through the proxy as a share of nginx's, 32 connections, auth on"""
    command = [sys.executable, str(ROOT / "bench/proxy.py"), "--connections", "32"]
    output = subprocess.run(
        command, env=clean_environment(folder), capture_output=True, text=True, check=True, cwd=folder
    ).stdout
    rates = dict(re.findall(r"^ *32 (\w+)[^\d\n]* +(\d+) ", output, re.MULTILINE))
    share = float(rates["ours"]) / float(rates["nginx"])
    return [
        at_least("proxy, 32 connections, share of nginx", 0.7, share, "of it"),
        Result("  proxy", "", f"{rates['ours']} req/s"),
        Result("  nginx", "", f"{rates['nginx']} req/s"),
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


BENCHMARKS: list[Benchmark] = [proxy_share, proxy_ssh_share]
