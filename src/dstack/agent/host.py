"""What the host has: read from /proc, the file system and the network interfaces."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import socket
from typing import Any, Dict, List

from dstack.agent.gpu.parse import Gpu


def host_facts(folder: str, gpus: List[Gpu], gpu_driver_version: str) -> Dict[str, Any]:
    """`AgentInfo.host`. `disk_bytes` is that of the disk of `folder`."""
    return {
        "hostname": socket.gethostname(),
        "arch": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "disk_bytes": shutil.disk_usage(folder).total,
        "addresses": addresses(),
        "gpus": [dataclasses.asdict(gpu) for gpu in gpus],
        "gpu_driver_version": gpu_driver_version,
    }


def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def addresses() -> List[str]:
    """IPv4 addresses of this host other than loopback, as the kernel's routing table lists them."""
    try:
        with open("/proc/net/fib_trie") as file:
            return parse_fib_trie(file.read())
    except FileNotFoundError:
        return []


def parse_fib_trie(text: str) -> List[str]:
    """Local addresses in `/proc/net/fib_trie`, without loopback, each once."""
    found: List[str] = []
    candidate = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "|--":
            candidate = words[1]
        elif "host LOCAL" in line and not candidate.startswith("127.") and candidate not in found:
            found.append(candidate)
    return found
