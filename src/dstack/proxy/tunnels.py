"""Ways to ports of other machines: OpenSSH processes that are kept up, one for each SSH server.

No database: who opens a tunnel says where to. The in-server proxy opens them at the first request, a gateway when
a replica is registered.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from pathlib import Path

from dstack.proxy.ssh_process import Destination, SSHProcess, TunnelError

STARTING_AT_ONCE = 8
FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 30.0
"""Between attempts to connect."""
STEADY_SECONDS = 1.0
"""A connection that held so long is made anew without a pause."""
LEFT_BEHIND_SECONDS = 300.0
"""A key that is older was left behind by a process that was killed."""

log = logging.getLogger(__name__)


class Carrier:
    """The connection to one SSH server, from `start` until `close`. What breaks is opened again."""

    def __init__(
        self,
        destination: Destination,
        folders: tuple[Path, Path],
        starting: asyncio.Semaphore,
        through: Carrier | None,
        *,
        are_shared: bool = False,
    ) -> None:
        """`folders`: of sockets, and of private keys. `through`: the connection to the jump host.

        `are_shared`: the sockets are for all who may enter their folder.
        """
        self.destination = destination
        self.through = through
        self._folders = folders
        self._are_shared = are_shared
        self._starting = starting
        self._paths: dict[str, str] = {}
        """Of the present process, by target."""
        self._targets: dict[str, str] = {}
        """All that is forwarded, and the name of each."""
        self._count = 0
        self._adding = asyncio.Lock()
        self._process: SSHProcess | None = None
        self._state: asyncio.Future[SSHProcess | TunnelError] = asyncio.get_running_loop().create_future()
        """Not done while it is opened for the first time or anew; an error while that does not succeed."""
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeping = asyncio.ensure_future(self._keep())

    @property
    def is_failing(self) -> bool:
        """The last attempt to connect has failed."""
        return self._state.done() and isinstance(self._state.result(), TunnelError)

    @property
    def is_unused(self) -> bool:
        return not self._targets

    async def up(self) -> SSHProcess:
        """The process, once it is up. Raises TunnelError, at once where the last attempt has failed."""
        state = await asyncio.shield(self._state)
        if isinstance(state, TunnelError):
            raise TunnelError(str(state))
        return state

    async def forward(self, target: str) -> str:
        """The socket that leads to `target`, a `host:port` seen from the server. Raises TunnelError."""
        if target not in self._targets:
            self._count += 1
            self._targets[target] = f"{self._count}.sock"
        while True:
            process = await self.up()
            path = self._paths.get(target) or await self._add(process, target)
            if path is not None:
                return path

    async def _add(self, process: SSHProcess, target: str) -> str | None:
        """None: another process has taken the place of that one. Raises TunnelError."""
        async with self._adding:
            if process is not self._process:
                return None
            path = self._paths.get(target)
            if path is not None:
                return path
            path = process.socket_path(self._targets[target])
            try:
                await process.forward(path, target)
            except TunnelError:
                if process is self._process:
                    raise
                return None
            if process is not self._process:
                return None
            self._paths[target] = path
            return path

    async def unforward(self, target: str) -> None:
        self._targets.pop(target, None)
        async with self._adding:
            path = self._paths.pop(target, None)
            if path is not None and self._process is not None:
                await self._process.unforward(path, target)

    def distrust(self, path: str) -> None:
        """Nobody listens on that socket: the process has ended, or does not do what it is for."""
        if self._process is not None and path in self._paths.values():
            self._process.kill()
            self._lose()

    async def lost(self, path: str) -> None:
        """Returns once that socket leads nowhere any more."""
        if self._process is not None and path in self._paths.values():
            await self._process.ended()

    def _lose(self) -> None:
        self._process = None
        self._paths = {}
        self._state = asyncio.get_running_loop().create_future()

    async def _keep(self) -> None:
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            try:
                process, paths = await self._open()
            except TunnelError as error:
                log.warning("%s", error)
                self._settle(error)
                pause = min(max(2 * pause, FIRST_PAUSE_S), LAST_PAUSE_S)
                continue
            began = time.monotonic()
            try:
                self._process, self._paths = process, paths
                self._settle(process)
                await process.ended()
            finally:
                if self._process is process:
                    self._lose()
                await process.end()
            held = time.monotonic() - began
            pause = 0.0 if held >= STEADY_SECONDS else min(max(2 * pause, FIRST_PAUSE_S), LAST_PAUSE_S)

    def _settle(self, result: SSHProcess | TunnelError) -> None:
        if self._state.done():
            self._state = asyncio.get_running_loop().create_future()
        self._state.set_result(result)

    async def _open(self) -> tuple[SSHProcess, dict[str, str]]:
        control = None if self.through is None else (await self.through.up()).control
        async with self._starting:
            sockets, keys = self._folders
            process = SSHProcess(self.destination, sockets, keys, control, are_shared=self._are_shared)
            paths = {target: process.socket_path(name) for target, name in self._targets.items()}
            await process.start({path: target for target, path in paths.items()})
            return process, paths

    async def close(self) -> None:
        """Ends the connection and all that goes through it."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self._settle(TunnelError(f"The connection to {self.destination} is being closed"))


class Tunnels:
    """All tunnels of a process. Those to one server share a connection; servers behind a jump host share that to
    it."""

    def __init__(self, keys: Path, *, shared_sockets: Path | None = None) -> None:
        """`keys`: a folder of this process for private keys, each there only while a connection is being made.

        `shared_sockets`: a folder for sockets that whoever may enter it may use; by default one of this process,
        whose sockets are for its own user.
        """
        self._keys = keys
        self._shared_sockets = shared_sockets
        self._sockets: Path | None = None
        self._starting = asyncio.Semaphore(STARTING_AT_ONCE)
        self._carriers: dict[Destination, Carrier] = {}

    async def open(self, destination: Destination, target: str) -> str:
        """A Unix socket that leads to `target`, a `host:port` seen from `destination`; the same one as long as it
        is good. Raises TunnelError."""
        return await self._carrier(destination).forward(target)

    def distrust(self, destination: Destination, path: str) -> None:
        """Nobody took a connection to that socket; the next `open` finds a better one."""
        carrier = self._carriers.get(destination)
        if carrier is not None:
            carrier.distrust(path)

    async def lost(self, destination: Destination, path: str) -> None:
        """Returns once that socket leads nowhere any more."""
        carrier = self._carriers.get(destination)
        if carrier is not None:
            await carrier.lost(path)

    def is_failing(self, destination: Destination) -> bool:
        """The last attempt to connect there has failed."""
        carrier = self._carriers.get(destination)
        return carrier is not None and carrier.is_failing

    async def close(self, destination: Destination, target: str) -> None:
        """Ends the tunnel; with the last one to a server, the connection."""
        carrier = self._carriers.get(destination)
        if carrier is None:
            return
        try:
            await carrier.unforward(target)
        except TunnelError as error:
            log.warning("%s", error)
        await self._close_unused(carrier)

    async def _close_unused(self, carrier: Carrier) -> None:
        is_passed = any(other.through is carrier for other in self._carriers.values())
        if is_passed or not carrier.is_unused or self._carriers.get(carrier.destination) is not carrier:
            return
        del self._carriers[carrier.destination]
        await carrier.close()
        if carrier.through is not None:
            await self._close_unused(carrier.through)

    def _carrier(self, destination: Destination) -> Carrier:
        known = self._carriers.get(destination)
        if known is None:
            through = None if destination.jump is None else self._carrier(destination.jump)
            are_shared = self._shared_sockets is not None
            known = Carrier(destination, self._folders(), self._starting, through, are_shared=are_shared)
            self._carriers[destination] = known
            known.start()
        return known

    def _folders(self) -> tuple[Path, Path]:
        if self._sockets is None:
            self._keys.mkdir(parents=True, exist_ok=True, mode=0o700)
            _remove_left_behind(self._keys)
            # Short: an address has room for 107 bytes.
            self._sockets = self._shared_sockets or Path(tempfile.mkdtemp(prefix="dstack-"))
        return self._sockets, self._keys

    async def stop(self) -> None:
        """Ends all of them."""
        carriers, self._carriers = list(self._carriers.values()), {}
        await asyncio.gather(*(carrier.close() for carrier in carriers))
        if self._sockets is not None and self._shared_sockets is None:
            shutil.rmtree(self._sockets, ignore_errors=True)
        self._sockets = None


def _remove_left_behind(keys: Path) -> None:
    for path in keys.iterdir():
        if path.stat().st_mtime < time.time() - LEFT_BEHIND_SECONDS:
            path.unlink(missing_ok=True)
