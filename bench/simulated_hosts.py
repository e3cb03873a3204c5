"""Hosts by the thousand in one process: `python -m bench.simulated_hosts DIR PORT AUTHORIZED_KEYS`.

Each loopback address (127.…) is a host with an SSH server on PORT, and behind it an agent of the simulated cloud
in DIR, which is there once it is installed. Logins, commands and channels are real; the two commands that look at
a host and install the agent are answered as a host with Python and without Docker would.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import asyncssh
import uvloop

from dstack.agent.simulator import SimulatedCloud
from dstack.backends.fake import cloud as cloud_client

PROBED = {
    "system": "Linux",
    "python": "/usr/bin/python3",
    "user": "root",
    "is_root": True,
    "as_root": True,
    "folder": "/var/lib/dstack",
    "docker": "absent",
    "free_bytes": 2**40,
}
MEMORY_BYTES = 8 * 2**30


class HostDoor(asyncssh.SSHServer):
    """Lets channels through to the agent's socket."""

    def unix_connection_requested(self, dest_path: str) -> bool:
        return True


class SimulatedHosts:
    """What the hosts answer to commands. `folder` is that of the cloud."""

    def __init__(self, folder: Path) -> None:
        self._cloud_socket = folder / "cloud.sock"

    async def run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """One command on the host whose address was connected to."""
        sent = await process.stdin.read()
        address = process.get_extra_info("sockname")[0]
        answer = await self._answer(f"host-{address.replace('.', '-')}", process.command or "", sent)
        process.stdout.write(json.dumps(answer).encode() + b"\n")
        process.exit(0)

    async def _answer(self, name: str, command: str, sent: bytes) -> dict[str, Any]:
        if " uninstall " in command:
            await self._call("DELETE", name)
            return {}
        if " install " not in command:
            return PROBED
        facts = {"archive_sha256": hashlib.sha256(sent).hexdigest(), "cpus": 2, "memory_bytes": MEMORY_BYTES}
        made = await self._call("PUT", name, facts)
        return {"socket": made["socket"]}

    async def _call(self, method: str, name: str, body: Any = None) -> Any:
        return await asyncio.to_thread(cloud_client.call, self._cloud_socket, method, f"/instances/{name}", body)


async def serve(folder: Path, port: int, authorized_keys: str) -> None:
    """Until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    simulated = SimulatedCloud(str(folder))
    await simulated.start()
    server = await asyncssh.listen(
        "0.0.0.0",
        port,
        server_factory=HostDoor,
        process_factory=SimulatedHosts(folder).run,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        authorized_client_keys=authorized_keys,
        encoding=None,
        backlog=4096,
    )
    await stopping.wait()
    server.close()
    await simulated.stop()


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))


if __name__ == "__main__":
    main()
