"""Having nginx do what a site file says: each change is tested first, and taken back where the test fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dstack.proxy.gateway.commands import run
from dstack.proxy.gateway.errors import GatewayError
from dstack.proxy.gateway.settings import GatewaySettings

TAKE_OVER_S = 10.0
TAKE_OVER_PAUSE_S = 0.01


class Nginx:
    """The files of its own in nginx's folder of sites, written one change at a time."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._changing = asyncio.Lock()
        self._reloading: asyncio.Future[None] | None = None

    async def put(self, name: str, text: str) -> None:
        """Makes or replaces a file and has nginx read it. Raises GatewayError; then all is as it was."""
        async with self._changing:
            path = self._settings.sites_dir / name
            before = _read(path)
            if before == text:
                return
            await self._write(path, text)
            try:
                await self._test()
            except GatewayError as error:
                await self._restore(path, before)
                raise GatewayError(f"nginx does not accept the configuration of {name}: {error}") from error
        await self._reload()

    async def put_all(self, files: dict[str, str]) -> None:
        """At start: exactly these files, and no others of ours. Raises GatewayError."""
        async with self._changing:
            for path in self._own_files():
                if path.name not in files:
                    await self._remove(path)
            for name, text in files.items():
                if _read(self._settings.sites_dir / name) != text:
                    await self._write(self._settings.sites_dir / name, text)
            await self._test()
        await self._reload()

    async def remove(self, name: str) -> None:
        """Nothing of it is left. Does nothing where there is none."""
        path = self._settings.sites_dir / name
        async with self._changing:
            if _read(path) is None:
                return
            await self._remove(path)
        await self._reload()

    def _own_files(self) -> list[Path]:
        return [path for path in self._settings.sites_dir.glob("*.conf") if path.name.startswith(("00-", "443-"))]

    async def _restore(self, path: Path, before: str | None) -> None:
        if before is None:
            await self._remove(path)
        else:
            await self._write(path, before)

    async def _write(self, path: Path, text: str) -> None:
        """In one step; everybody on the host can read it."""
        if not self._settings.privilege:
            _replace(path, text)
            return
        new = _aside(path)
        await run([*self._settings.privilege, "tee", str(new)], stdin=text.encode())
        await run([*self._settings.privilege, "mv", "-f", str(new), str(path)])

    async def _remove(self, path: Path) -> None:
        if self._settings.privilege:
            await run([*self._settings.privilege, "rm", "-f", str(path)])
        else:
            _remove(path)

    async def _test(self) -> None:
        await run([*self._settings.privilege, *self._settings.nginx_test])

    async def _reload(self) -> None:
        """Changes that come while one is being loaded are loaded together, once it is done."""
        if self._reloading is None:
            self._reloading = asyncio.ensure_future(self._reload_soon())
        await asyncio.shield(self._reloading)

    async def _reload_soon(self) -> None:
        async with self._changing:  # what is being written now is loaded too
            self._reloading = None
            before = serving_workers(self._settings.nginx_pid_file)
            await run([*self._settings.privilege, *self._settings.nginx_reload])
            await self._taken_over_from(before)

    async def _taken_over_from(self, before: set[int]) -> None:
        """A reload is but a signal: requests meet the new configuration once the old workers take none."""
        for _ in range(int(TAKE_OVER_S / TAKE_OVER_PAUSE_S)):
            now = serving_workers(self._settings.nginx_pid_file)
            if now and not now & before:
                return
            await asyncio.sleep(TAKE_OVER_PAUSE_S)
        raise GatewayError("nginx goes on with its old configuration; its error log says why")


def serving_workers(pid_file: Path) -> set[int]:
    """Process ids of the workers that take new connections; none where nginx does not run."""
    try:
        master = int(pid_file.read_text())
        children = Path(f"/proc/{master}/task/{master}/children").read_text()
    except (OSError, ValueError):
        return set()
    return {int(pid) for pid in children.split() if _title(pid) == "nginx: worker process"}


def _title(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().strip("\0 ")
    except OSError:
        return ""


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")  # nginx reads no files that begin with a dot


def _replace(path: Path, text: str) -> None:
    new = _aside(path)
    new.write_text(text)
    new.replace(path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
