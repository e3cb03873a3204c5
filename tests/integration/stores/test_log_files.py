"""What is special about logs in files: crashes, full disks, other writers, odd names."""

from __future__ import annotations

import json
import os
import resource
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstack.agent.protocol import FRAME_HEADER
from dstack.core.errors import StoreError
from dstack.server.stores.logs.base import LogKey, LogQuery
from dstack.server.stores.logs.files import FileLogStore
from dstack.server.stores.logs.index import MARK, MARK_LINES

START_US = 1_767_323_045_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "projects"


@pytest.fixture
def key() -> LogKey:
    return LogKey("main", "hello", uuid.uuid4())


@pytest.fixture
def log(root: Path, key: LogKey) -> Path:
    return root / "main" / "logs" / "hello" / str(key.job_submission_id) / "job.log"


@pytest.fixture
def no_file_over_20_kilobytes() -> Iterator[None]:
    """The kernel refuses to let a file grow further, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def batch(first: int, count: int) -> tuple[list[tuple[int, bytes]], int]:
    """Frames of `line 000nn`, and where the last one ends."""
    frames = [(START_US + n, f"line {n:05}\n".encode()) for n in range(first, first + count)]
    return frames, (first + count) * (FRAME_HEADER.size + 11)


async def read_all(store: FileLogStore, key: LogKey) -> list[str]:
    found, token = [], None
    while True:
        page = await store.poll(key, LogQuery(limit=1000, next_token=token))
        found += [event.message for event in page.logs]
        token = page.next_token
        if token is None:
            return found


async def test_the_file_has_the_documented_form(root: Path, key: LogKey, log: Path) -> None:
    await FileLogStore(root).append(key, [(START_US, b"hi\n")], 15)
    assert json.loads(log.read_text()) == {
        "timestamp": "2026-01-02T03:04:05.000000Z",
        "log_source": "stdout",
        "message": "aGkK",
        "offset": 15,
    }


@pytest.mark.parametrize("count", [3, MARK_LINES, MARK_LINES + 1, 1000])
async def test_another_process_goes_on_where_the_last_one_was(root: Path, key: LogKey, count: int) -> None:
    await FileLogStore(root).append(key, *batch(0, count))
    other = FileLogStore(root)
    assert await other.position(key) == batch(0, count)[1]
    await other.append(key, *batch(0, count + 5))
    assert len(set(await read_all(other, key))) == len(await read_all(other, key)) == count + 5


async def test_two_stores_on_one_file_see_one_another(root: Path, key: LogKey) -> None:
    one, two = FileLogStore(root), FileLogStore(root)
    await one.append(key, *batch(0, 200))
    await two.append(key, *batch(200, 200))
    await one.append(key, *batch(400, 200))
    assert await read_all(two, key) == await read_all(FileLogStore(root), key)
    assert len(set(await read_all(one, key))) == 600


async def test_a_log_deleted_by_another_process_is_gone_here_too(root: Path, key: LogKey) -> None:
    one, two = FileLogStore(root), FileLogStore(root)
    await one.append(key, *batch(0, 100))
    await two.delete(key)
    assert await one.position(key) == 0
    await two.append(key, [(START_US, b"x" * 10_000)], 10_012)
    assert await one.position(key) == 10_012
    assert len(await read_all(one, key)) == 1


@pytest.mark.parametrize("cut", [1, 10, 70])
@pytest.mark.parametrize("count", [1, 5, 600])
async def test_a_torn_last_record_is_cut_off(root: Path, key: LogKey, log: Path, cut: int, count: int) -> None:
    await FileLogStore(root).append(key, *batch(0, count))
    os.truncate(log, log.stat().st_size - cut)
    store = FileLogStore(root)
    assert await store.position(key) == batch(0, count - 1)[1]
    assert len(await read_all(store, key)) == count - 1
    await store.append(key, *batch(0, count))
    assert len(set(await read_all(store, key))) == count
    assert all(json.loads(line) for line in log.read_text().splitlines())


@pytest.mark.parametrize("damage", ["missing", "torn", "too long", "nonsense"])
async def test_the_index_is_never_trusted(root: Path, key: LogKey, log: Path, damage: str) -> None:
    await FileLogStore(root).append(key, *batch(0, 1000))
    index = log.with_suffix(".index")
    marks = index.read_bytes()
    assert len(marks) == MARK.size * (999 // MARK_LINES)
    if damage == "missing":
        index.unlink()
    elif damage == "torn":
        index.write_bytes(marks[:-5])
    elif damage == "too long":
        index.write_bytes(marks + MARK.pack(1100, 10_000_000, START_US + 1099))
    else:
        index.write_bytes(marks + MARK.pack(999, log.stat().st_size - 5, START_US + 998))
    store = FileLogStore(root)
    await store.append(key, *batch(1000, 200))
    assert len(set(await read_all(store, key))) == len(await read_all(store, key)) == 1200
    again = FileLogStore(root)
    assert await again.position(key) == batch(0, 1200)[1]
    assert (await again.poll(key, LogQuery(next_token="1199"))).logs == (
        await again.poll(key, LogQuery(descending=True, limit=1))
    ).logs


@pytest.mark.usefixtures("no_file_over_20_kilobytes")
async def test_a_full_disk_loses_and_doubles_nothing(root: Path, key: LogKey, log: Path) -> None:
    store = FileLogStore(root)
    await store.append(key, *batch(0, 50))
    size = log.stat().st_size
    with pytest.raises(StoreError, match=f"Cannot store logs in {log}: File too large"):
        await store.append(key, *batch(50, 500))
    assert log.stat().st_size == size
    assert await store.position(key) == batch(0, 50)[1]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await store.append(key, *batch(50, 500))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(set(await read_all(store, key))) == 550


async def test_a_damaged_record_in_the_middle_is_told(root: Path, key: LogKey, log: Path) -> None:
    await FileLogStore(root).append(key, *batch(0, 1000))
    data = bytearray(log.read_bytes())
    data[200:300] = b"#" * 100
    log.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        await FileLogStore(root).poll(key, LogQuery())


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../etc", "", "%2E"])
async def test_no_name_leads_out_of_the_root(root: Path, name: str) -> None:
    key = LogKey("main", f"x{name}" if name == "" else name, uuid.uuid4())
    store = FileLogStore(root)
    await store.append(key, *batch(0, 1))
    assert await store.position(key) == batch(0, 1)[1]
    [log] = root.rglob("job.log")
    assert len(log.relative_to(root).parts) == 5


async def test_b14_reading_the_end_of_a_long_log_reads_little(root: Path, key: LogKey, log: Path) -> None:
    """B14: the cost of a page does not grow with the log before it."""
    store = FileLogStore(root)
    for first in range(0, 50_000, 5000):
        await store.append(key, *batch(first, 5000))
    await store.poll(key, LogQuery(next_token="0", limit=1))

    def bytes_read() -> int:
        counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counters["rchar"])

    before = bytes_read()
    page = await store.poll(key, LogQuery(next_token="49990"))
    assert len(page.logs) == 10
    assert bytes_read() - before < 300_000 < log.stat().st_size / 10
