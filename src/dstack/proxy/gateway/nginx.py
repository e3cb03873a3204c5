"""Having nginx do what site files say.

Changes that come while others are made wait, and are then made together: written, tested once, loaded once. A
reload closes connections that are idle, and testing reads all files, so fewer are better. Where the test fails,
all are taken back and each half is tried by itself, so that only what nginx refuses is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dstack.proxy.gateway.commands import run
from dstack.proxy.gateway.errors import GatewayError
from dstack.proxy.gateway.settings import GatewaySettings

TAKE_OVER_S = 10.0
TAKE_OVER_PAUSE_S = 0.01


@dataclass(frozen=True)
class Change:
    """Of a file; without a text it goes. `done` when nginx works by it, or with the reason why it does not."""

    name: str
    text: str | None
    done: asyncio.Future[None]


class Nginx:
    """The files of its own in nginx's folder of sites."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._waiting: list[Change] = []
        self._making: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._not_loaded = settings.dir / "nginx-not-loaded"
        """Is there while files may differ from what nginx has loaded; a killed app leaves it to the next one."""

    async def put(self, name: str, text: str) -> None:
        """Makes or replaces a file and has nginx read it. Raises GatewayError; then all is as it was."""
        await self._change(name, text)

    async def remove(self, name: str) -> None:
        """Nothing of it is left. Does nothing where there is none. Raises GatewayError."""
        await self._change(name, None)

    async def put_all(self, files: dict[str, str]) -> None:
        """At start: exactly these files, and no others of ours. Raises GatewayError."""
        async with self._changing:
            texts: dict[Path, str | None] = dict.fromkeys(self._own_files())
            texts |= {self._settings.sites_dir / name: text for name, text in files.items()}
            is_new = [await self._put(path, text) for path, text in texts.items()]
            if any(is_new) or self._not_loaded.exists():
                await self._test()
                await self._reload()

    async def _change(self, name: str, text: str | None) -> None:
        change = Change(name, text, asyncio.get_running_loop().create_future())
        self._waiting.append(change)
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._make_changes())
        await change.done

    async def _make_changes(self) -> None:
        while self._waiting:
            async with self._changing:
                changes, self._waiting = self._waiting, []
                try:
                    accepted = await self._accept(changes)
                    if accepted:
                        await self._reload()
                except Exception as error:  # noqa: BLE001 (whoever waits for a change gets it)
                    _finish(changes, error)
                else:
                    _finish(changes)

    async def _accept(self, changes: Sequence[Change]) -> bool:
        """Whether there is something new to load. Who made a change that nginx refuses is told so."""
        before = {change.name: _read(self._settings.sites_dir / change.name) for change in changes}
        try:
            is_new = [await self._put(self._settings.sites_dir / change.name, change.text) for change in changes]
            if any(is_new):
                await self._test()
            return any(is_new)
        except GatewayError as error:
            for name, text in before.items():
                await self._put(self._settings.sites_dir / name, text)
            if len(changes) > 1:
                half = len(changes) // 2
                accepted = [await self._accept(part) for part in (changes[:half], changes[half:])]
                return any(accepted)
            refusal = f"nginx does not accept the configuration of {changes[0].name}: {error}"
            _finish(changes, GatewayError(refusal))
            return False

    async def _put(self, path: Path, text: str | None) -> bool:
        """Whether it was another text before."""
        if _read(path) == text:
            return False
        self._not_loaded.touch()
        if text is None:
            await self._remove(path)
        else:
            await self._write(path, text)
        return True

    def _own_files(self) -> list[Path]:
        return [path for path in self._settings.sites_dir.glob("*.conf") if path.name.startswith(("00-", "443-"))]

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
        before = serving_workers(self._settings.nginx_pid_file)
        await run([*self._settings.privilege, *self._settings.nginx_reload])
        await self._taken_over_from(before)
        self._not_loaded.unlink(missing_ok=True)

    async def _taken_over_from(self, before: set[int]) -> None:
        """A reload is but a signal: requests meet the new configuration once the old workers take none."""
        for _ in range(int(TAKE_OVER_S / TAKE_OVER_PAUSE_S)):
            now = serving_workers(self._settings.nginx_pid_file)
            if now and not now & before:
                return
            await asyncio.sleep(TAKE_OVER_PAUSE_S)
        raise GatewayError("nginx goes on with its old configuration; its error log says why")


def _finish(changes: Sequence[Change], error: Exception | None = None) -> None:
    """Tells those who wait, unless they were told or have gone."""
    for change in changes:
        if change.done.done():
            continue
        if error is None:
            change.done.set_result(None)
        else:
            change.done.set_exception(error)


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
