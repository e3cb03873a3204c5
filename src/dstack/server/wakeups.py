"""Who is told that something changed: in this process, and across replicas where the database can.

A leaf module: keys are plain strings here (``"job:<uuid>"``, ``"topic"``), so that the database layer can
pass them on without knowing the orchestrator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Listener = Callable[[str], None]

RESET_TOPICS = ("routes", "tokens", "members", "backends", "missed")
"""Delivered after a gap in which wake-ups of other replicas may have been missed: empties every cache, and
``missed`` asks the orchestrator for a sweep at once."""


class Wakeups:
    """A fan-out of names. `publish` never blocks and never fails; listeners are called in order of arrival.

    Topics: ``"<kind>:<uuid>"`` wakes the orchestrator; ``"changed:run:<project id>:<run id>"`` tells the
    event streams; ``"routes"``, ``"tokens"``, ``"members"`` and ``"backends"`` empty the caches of the
    proxy, of access and of the configured backends.
    """

    def __init__(self) -> None:
        self._listeners: list[tuple[Listener, Listener]] = []
        self._remote: Callable[[list[str]], None] | None = None

    def listen(self, listener: Listener, *, from_others: Listener | None = None) -> Callable[[], None]:
        """Returns what ends the listening. `from_others` gets what other replicas published; without it `listener`
        gets that too."""
        both = (listener, from_others or listener)
        self._listeners.append(both)
        return lambda: self._listeners.remove(both)

    def publish(self, names: Iterable[str]) -> None:
        """To this process at once, and to the other replicas where a carrier is set."""
        names = list(names)
        for name in names:
            for listener, _ in list(self._listeners):
                listener(name)
        if self._remote is not None and names:
            self._remote(names)

    def deliver(self, names: Iterable[str]) -> None:
        """To this process only: what the carrier calls for names that came from another replica."""
        for name in names:
            for _, listener in list(self._listeners):
                listener(name)

    def carry_with(self, remote: Callable[[list[str]], None] | None) -> None:
        """Sets what takes names to other replicas (``NOTIFY`` on PostgreSQL)."""
        self._remote = remote
