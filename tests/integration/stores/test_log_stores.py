"""The rules of every log store, run against each of them."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from dstack.agent.protocol import FRAME_HEADER
from dstack.core.errors import InvalidRequest
from dstack.server.stores.logs.base import Frame, LogKey, LogPage, LogQuery, LogStore, follow
from dstack.server.stores.logs.files import FileLogStore

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
START_US = int(START.timestamp()) * 1_000_000


@pytest.fixture(params=["files"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogStore]:
    log_store = FileLogStore(tmp_path / "projects")
    yield log_store
    await log_store.close()


@pytest.fixture
def key() -> LogKey:
    return LogKey("main", "hello", uuid.uuid4())


def frames_of(first: int, count: int) -> list[Frame]:
    """Line n, one second after line n - 1."""
    return [(START_US + n * 1_000_000, f"line {n}\n".encode()) for n in range(first, first + count)]


def length(frames: Sequence[Frame]) -> int:
    return sum(FRAME_HEADER.size + len(payload) for _, payload in frames)


async def fill(store: LogStore, key: LogKey, count: int) -> int:
    frames = frames_of(0, count)
    await store.append(key, frames, length(frames))
    return length(frames)


def lines(page: LogPage) -> list[str]:
    return [base64.b64decode(event.message).decode().rstrip("\n") for event in page.logs]


def numbers(page: LogPage) -> list[int]:
    return [int(line.split()[1]) for line in lines(page)]


async def read_all(store: LogStore, key: LogKey, *, descending: bool = False, limit: int = 1000) -> list[int]:
    found: list[int] = []
    token: str | None = None
    while True:
        page = await store.poll(key, LogQuery(descending=descending, next_token=token, limit=limit))
        found += numbers(page)
        token = page.next_token
        if token is None:
            return found


async def test_an_unknown_submission_has_no_logs(store: LogStore, key: LogKey) -> None:
    page = await store.poll(key, LogQuery())
    assert (page.logs, page.next_token) == ([], None)
    assert await store.position(key) == 0
    await store.delete(key)


async def test_what_is_stored_is_read_as_it_came(store: LogStore, key: LogKey) -> None:
    payload = bytes(range(256)) + "Ünï".encode()
    await store.append(key, [(START_US + 123_456, payload)], FRAME_HEADER.size + len(payload))
    page = await store.poll(key, LogQuery())
    assert base64.b64decode(page.logs[0].message) == payload
    assert page.logs[0].timestamp == START + timedelta(microseconds=123_456)
    assert page.model_dump(mode="json")["logs"][0]["log_source"] == "stdout"
    assert "resume_token" not in page.model_dump()


async def test_position_is_the_end_of_what_is_stored(store: LogStore, key: LogKey) -> None:
    end = await fill(store, key, 10)
    assert await store.position(key) == end


async def test_frames_that_are_stored_are_dropped(store: LogStore, key: LogKey) -> None:
    frames = frames_of(0, 10)
    await store.append(key, frames[:6], length(frames[:6]))
    await store.append(key, frames[:6], length(frames[:6]))
    await store.append(key, frames[2:], length(frames))
    await store.append(key, frames[3:5], length(frames[:5]))
    assert await read_all(store, key) == list(range(10))
    assert await store.position(key) == length(frames)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
async def test_pages_hold_every_line_once(store: LogStore, key: LogKey, descending: bool, limit: int) -> None:
    count = 1500 if limit > 1 else 300
    await fill(store, key, count)
    found = await read_all(store, key, descending=descending, limit=limit)
    assert found == sorted(range(count), reverse=descending)


async def test_ascending_token_is_the_next_line(store: LogStore, key: LogKey) -> None:
    await fill(store, key, 20)
    first = await store.poll(key, LogQuery(limit=5))
    assert (numbers(first), first.next_token) == ([0, 1, 2, 3, 4], "5")
    last = await store.poll(key, LogQuery(limit=5, next_token="15"))
    assert (numbers(last), last.next_token) == ([15, 16, 17, 18, 19], None)


@pytest.mark.parametrize("count", [20, 900])
async def test_ascending_bounds_are_exclusive(store: LogStore, key: LogKey, count: int) -> None:
    await fill(store, key, count)
    page = await store.poll(
        key,
        LogQuery(start_time=START + timedelta(seconds=5), end_time=START + timedelta(seconds=count - 5)),
    )
    expected = list(range(6, count - 5))
    assert numbers(page) == expected[:100]
    assert page.next_token == (None if len(expected) <= 100 else "106")


@pytest.mark.parametrize("count", [20, 900])
async def test_descending_end_is_inclusive(store: LogStore, key: LogKey, count: int) -> None:
    await fill(store, key, count)
    page = await store.poll(
        key,
        LogQuery(
            start_time=START + timedelta(seconds=count - 15),
            end_time=START + timedelta(seconds=count - 5),
            descending=True,
        ),
    )
    assert numbers(page) == list(range(count - 5, count - 15, -1))
    assert page.next_token is None


async def test_start_time_and_token_go_together(store: LogStore, key: LogKey) -> None:
    await fill(store, key, 400)
    start = START + timedelta(seconds=299)
    first = await store.poll(key, LogQuery(start_time=start, limit=50))
    second = await store.poll(key, LogQuery(start_time=start, limit=1000, next_token=first.next_token))
    assert numbers(first) + numbers(second) == list(range(300, 400))


@pytest.mark.parametrize("token", ["abc", "-1", "1.5", "", "9" * 30, "\N{ARABIC-INDIC DIGIT ONE}"])
@pytest.mark.parametrize("descending", [False, True])
async def test_a_bad_token_is_refused(store: LogStore, key: LogKey, token: str, descending: bool) -> None:
    await fill(store, key, 3)
    with pytest.raises(InvalidRequest, match="next_token"):
        await store.poll(key, LogQuery(next_token=token, descending=descending))


async def test_a_descending_token_within_a_line_is_refused(store: LogStore, key: LogKey) -> None:
    await fill(store, key, 3)
    for token in ("5", "100000"):
        with pytest.raises(InvalidRequest, match="next_token"):
            await store.poll(key, LogQuery(next_token=token, descending=True))


@pytest.mark.parametrize("limit", [-1, 1001])
def test_the_limit_has_bounds(limit: int) -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 1000"):
        LogQuery(limit=limit)


async def test_limit_zero_asks_for_nothing(store: LogStore, key: LogKey) -> None:
    await fill(store, key, 3)
    for descending in (False, True):
        page = await store.poll(key, LogQuery(limit=0, descending=descending))
        assert (page.logs, page.next_token) == ([], None)


@pytest.mark.parametrize("descending", [False, True])
async def test_a_page_is_bounded_in_bytes(store: LogStore, key: LogKey, descending: bool) -> None:
    frames = [(START_US + n, f"line {n} ".encode() + b"x" * 30_000) for n in range(100)]
    await store.append(key, frames, length(frames))
    page = await store.poll(key, LogQuery(limit=1000, descending=descending))
    assert page.next_token is not None
    assert 0 < len(page.logs) < 50
    assert await read_all(store, key, descending=descending) == sorted(range(100), reverse=descending)


async def test_time_never_runs_backwards(store: LogStore, key: LogKey) -> None:
    frames = [(START_US, b"line 0"), (START_US - 10_000_000, b"line 1"), (START_US + 1, b"line 2")]
    await store.append(key, frames, length(frames))
    page = await store.poll(key, LogQuery())
    assert numbers(page) == [0, 1, 2]
    assert [event.timestamp for event in page.logs][1] == START


async def test_diagnostics_are_apart(store: LogStore, key: LogKey) -> None:
    await fill(store, key, 1)
    await store.note(key, START_US, "the host answers")
    await store.note(key, START_US, "the task is gone\n")
    page = await store.poll(key, LogQuery(diagnose=True))
    assert lines(page) == ["the host answers", "the task is gone"]
    assert await read_all(store, key) == [0]


async def test_deleted_logs_are_gone(store: LogStore, key: LogKey) -> None:
    await fill(store, key, 5)
    await store.delete(key)
    assert await store.position(key) == 0
    assert (await store.poll(key, LogQuery())).logs == []
    await fill(store, key, 2)
    assert await read_all(store, key) == [0, 1]


async def test_following_sees_each_addition(store: LogStore, key: LogKey) -> None:
    frames = frames_of(0, 3000)
    found: list[int] = []

    async def reader() -> None:
        async for page in follow(store, key):
            found.extend(numbers(page))
            if len(found) == len(frames):
                return

    task = asyncio.create_task(reader())
    for end in range(100, len(frames) + 1, 100):
        await store.append(key, frames[end - 100 : end], length(frames[:end]))
    await asyncio.wait_for(task, 30)
    assert found == list(range(3000))


async def test_following_says_when_nothing_comes(store: LogStore, key: LogKey) -> None:
    await fill(store, key, 5)
    pages = follow(store, key, start_time=START + timedelta(seconds=2), idle_seconds=0.01)
    assert numbers(await anext(pages)) == [3, 4]
    assert numbers(await anext(pages)) == []
    await pages.aclose()  # type: ignore[attr-defined]


async def test_several_writers_and_readers_at_once(store: LogStore, key: LogKey) -> None:
    frames = frames_of(0, 500)
    await asyncio.gather(
        *(store.append(key, frames[:end], length(frames[:end])) for end in range(50, 501, 50)),
        *(store.poll(key, LogQuery()) for _ in range(10)),
    )
    assert await read_all(store, key) == list(range(500))
