"""What the log store does with large logs."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

from bench.measure import Benchmark, Result, at_least
from dstack.agent.protocol import FRAME_HEADER, MAX_FRAME_BYTES
from dstack.server.stores.logs.base import LogKey, LogQuery
from dstack.server.stores.logs.files import FileLogStore

BATCH_BYTES = 1024 * 1024
SECONDS = 2


def log_store(folder: Path) -> list[Result]:
    """storing output in files, and reading the end of it"""
    return asyncio.run(_measure(folder))


async def _measure(folder: Path) -> list[Result]:
    store, results = FileLogStore(folder), []
    for size in (100, MAX_FRAME_BYTES):
        key = LogKey("main", f"frames-{size}", uuid.uuid4())
        frames = [(1_767_323_045_000_000, b"x" * size)] * (BATCH_BYTES // size)
        length, batches, start = len(frames) * (FRAME_HEADER.size + size), 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            batches += 1
            await store.append(key, frames, batches * length)
        rate = batches * len(frames) * size / 1e6 / (time.perf_counter() - start)
        what = f"storing output, pieces of {size:,} bytes"
        results.append(at_least(what, 50, rate, "MB/s") if size > 100 else Result(what, "", f"{rate:.3g} MB/s"))
        start = time.perf_counter()
        await store.poll(key, LogQuery(descending=True, limit=100))
        milliseconds = (time.perf_counter() - start) * 1000
        results.append(Result(f"  last page of {batches} MB", "", f"{milliseconds:.3g} ms"))
    return results


BENCHMARKS: list[Benchmark] = [log_store]
