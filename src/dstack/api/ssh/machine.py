"""Whether two processes are on one machine, and so share its loopback."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from pathlib import Path


def network_id() -> str:
    """The same text for all processes that reach one another on 127.0.0.1, and for no others."""
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        parts = [boot, str(os.stat("/proc/self/ns/net").st_ino)]
    else:
        parts = [socket.gethostname()]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
