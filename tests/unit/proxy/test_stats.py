from __future__ import annotations

import json

from dstack.proxy.stats import Counts, ServiceStats


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_requests_are_counted_by_window() -> None:
    clock = Clock()
    stats = ServiceStats(clock)
    for age_seconds, took in ((200, 1.0), (45, 0.5), (10, 0.25), (10, 0.75)):
        clock.now = 1000.0 - age_seconds - took
        started = stats.start("s")
        clock.now += took
        stats.finish("s", started)
    clock.now = 1000.0
    found = {window: (counts.requests, counts.request_time) for window, counts in stats.windows("s").items()}
    assert found == {30: (2, 0.5), 60: (3, 0.5), 300: (4, 0.625)}
    assert stats.windows("other")[30] == Counts()
    assert stats.in_flight("s") == 0
    assert stats.total("s").requests == 4


def test_what_became_of_requests() -> None:
    clock = Clock()
    stats = ServiceStats(clock)
    for took, first_byte, is_error, tokens in (
        (2.0, 0.5, False, (10, 100)), (4.0, 1.0, False, (5, 20)), (6.0, 1.5, True, None), (1.0, None, True, None),
    ):  # fmt: skip
        clock.now = 1000.0 - took
        started = stats.start("s")
        began = 0.0 if first_byte is None else started + first_byte
        clock.now = 1000.0
        stats.finish("s", started, began=began, is_error=is_error, tokens=tokens)
    counts = stats.windows("s")[60]
    assert (counts.requests, counts.errors, counts.seconds) == (4, 2, 13.0)
    assert (counts.answered, counts.waited) == (3, 3.0)
    assert (counts.prompt_tokens, counts.completion_tokens) == (15, 120)
    assert (sum(counts.latency.values()), sum(counts.first_byte.values())) == (4, 3)
    assert stats.total("s").errors == 2


def test_b10_requests_on_their_way_are_looked_at_every_second() -> None:
    clock = Clock()
    stats = ServiceStats(clock)
    started = [stats.start("s"), stats.start("s")]
    for _ in range(10):
        stats.look()
        clock.now += 1
    stats.finish("s", started[0])
    for _ in range(20):
        stats.look()
        clock.now += 1
    assert stats.windows("s")[30].in_flight == 9 * 2 + 20 * 1
    clock.now += 20
    assert stats.windows("s")[30].in_flight == 9


def test_counts_of_several_servers_are_added_by_way_of_json() -> None:
    one = Counts(requests=2, errors=1, seconds=1.5, latency={3: 1, 40: 1}, first_byte={2: 1})
    other = Counts(requests=1, seconds=0.5, latency={40: 1}, completion_tokens=7)
    together = Counts()
    for counts in (one, other):
        together.add(Counts.load(json.loads(json.dumps(counts.dump()))))
    assert together == Counts(
        requests=3, errors=1, seconds=2.0, latency={3: 1, 40: 2}, first_byte={2: 1}, completion_tokens=7
    )
    assert Counts().dump() == {}


def test_what_is_in_flight_is_known_and_gone_services_are_forgotten() -> None:
    stats = ServiceStats(Clock())
    started = stats.start("gone")
    stats.start("busy")
    assert stats.in_flight("gone") == 1
    stats.finish("gone", started)
    stats.forget_all_but({"other"})
    assert stats.windows("gone")[300].requests == 0
    assert stats.in_flight("busy") == 1
