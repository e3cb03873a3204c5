"""Who is in which job, and when they have to go: the job has ended, or they may not be there any more."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from uuid import UUID

from dstack.core.errors import DstackError
from dstack.server.operations.context import Context
from dstack.server.ssh_door import entry
from dstack.server.wakeups import RESET_TOPICS

if TYPE_CHECKING:  # it loads asyncssh
    from dstack.server.ssh_door.guest import Guest

MAX_AT_THE_DOOR = 100
"""Connections that have not been let in; more are turned away."""
ENDED_GRACE_SECONDS = 10.0
"""How long a connection into a job that has ended stays at least, so that its last output can be read."""
LOOK_EVERY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Visits:
    """Keeps count of connections; listens to wake-ups while there are some."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._at_the_door: set[Guest] = set()
        self._inside: dict[UUID, set[Guest]] = {}
        """By run."""
        self._leaving: dict[Guest, asyncio.Task[None]] = {}
        self._runs_to_check: set[UUID] = set()
        self._check_all = False
        self._news = asyncio.Event()
        self._checking: asyncio.Task[None] | None = None
        self._deaf = ctx.database.wakeups.listen(self._hear)

    def came(self, guest: Guest) -> None:
        """Connected, and not let in yet."""
        self._at_the_door.add(guest)
        if len(self._at_the_door) > MAX_AT_THE_DOOR:
            guest.disconnect("Too many connections that are not let in; try again")

    def entered(self, guest: Guest) -> None:
        """Let in. The job may have ended before."""
        assert guest.job is not None
        self._at_the_door.discard(guest)
        self._inside.setdefault(guest.job.run_id, set()).add(guest)
        if self._checking is None:
            self._checking = asyncio.ensure_future(self._check())
        self._runs_to_check.add(guest.job.run_id)
        self._news.set()

    def left(self, guest: Guest) -> None:
        """Gone, whether it was let in or not."""
        self._at_the_door.discard(guest)
        leaving = self._leaving.pop(guest, None)
        if leaving is not None:
            leaving.cancel()
        of_run = self._inside.get(guest.job.run_id) if guest.job is not None else None
        if of_run is not None and guest.job is not None:
            of_run.discard(guest)
            if not of_run:
                del self._inside[guest.job.run_id]

    async def end(self, reason: str) -> None:
        """Everybody has to go."""
        self._deaf()
        tasks = [*self._leaving.values(), *([] if self._checking is None else [self._checking])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for guest in [*self._at_the_door, *self._all()]:
            guest.disconnect(reason)

    def _all(self) -> list[Guest]:
        return [guest for of_run in self._inside.values() for guest in of_run]

    def _hear(self, name: str) -> None:
        if not self._inside:
            return
        if name.startswith("changed:run:"):
            run_id = UUID(name.rpartition(":")[2])
            if run_id not in self._inside:
                return
            self._runs_to_check.add(run_id)
        elif name in RESET_TOPICS:
            self._check_all = True
        else:
            return
        self._news.set()

    async def _check(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            check_all, self._check_all = self._check_all, False
            runs, self._runs_to_check = self._runs_to_check, set()
            if check_all:
                runs = set(self._inside)
            try:
                await self._check_jobs([guest for run_id in runs for guest in self._inside.get(run_id, ())])
                if check_all:
                    await self._check_rights(self._all())
            except DstackError as error:
                logger.warning("The SSH door could not look whether its guests may stay: %s", error.detail)
                self._check_all = True
                self._news.set()
                await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _check_jobs(self, guests: list[Guest]) -> None:
        by_job: dict[UUID, list[Guest]] = {}
        for guest in guests:
            assert guest.job is not None
            by_job.setdefault(guest.job.id, []).append(guest)
        for job_id, of_job in by_job.items():
            status = await entry.find_status(self._ctx.database, job_id)
            if status is None or status.is_finished():
                for guest in of_job:
                    if guest not in self._leaving:
                        self._leaving[guest] = asyncio.ensure_future(_see_off(guest))

    async def _check_rights(self, guests: list[Guest]) -> None:
        known: dict[tuple[UUID, UUID], bool] = {}
        for guest in guests:
            assert guest.job is not None
            assert guest.entrance is not None
            if guest.entrance.user is None:
                continue
            key = (guest.job.project_id, guest.entrance.user.id)
            if key not in known:
                known[key] = await entry.may_stay(self._ctx.database, guest.job, guest.entrance)
            if not known[key] or not await self._token_is_good(guest):
                guest.disconnect("You may not enter this job any more")

    async def _token_is_good(self, guest: Guest) -> bool:
        """Of those who came with one."""
        if guest.carried is None or guest.entrance is None or guest.entrance.by is not entry.By.TOKEN:
            return True
        return await self._ctx.access.authenticate(guest.carried.token) is not None


async def _see_off(guest: Guest) -> None:
    """Once the job has ended and what its guest still reads of the output is read."""
    await asyncio.sleep(ENDED_GRACE_SECONDS)
    await guest.logs_are_read.wait()
    guest.disconnect("The job has ended")
