"""What was read from the database, until it is forgotten as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

MAX_KEYS = 10_000

K = TypeVar("K")
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """Each key is read once, whoever asks for it meanwhile."""

    def __init__(self, read: Callable[[K], Coroutine[Any, Any, V]]) -> None:
        self._read = read
        self._known: dict[K, V] = {}
        self._loading: dict[K, asyncio.Task[V]] = {}

    def find(self, key: K) -> V | Awaitable[V]:
        """At once where it is known, else to be awaited."""
        if key in self._known:
            return self._known[key]
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = asyncio.get_running_loop().create_task(self._load(key))
        return asyncio.shield(loading)

    def forget(self) -> None:
        """Who waits gets what was read; who comes now has it read again."""
        self._known.clear()
        self._loading.clear()

    async def _load(self, key: K) -> V:
        task = asyncio.current_task()
        try:
            value = await self._read(key)
            if self._loading.get(key) is task:
                if len(self._known) >= MAX_KEYS:
                    self._known.clear()
                self._known[key] = value
            return value
        finally:
            if self._loading.get(key) is task:
                del self._loading[key]
