from __future__ import annotations

from dstack.proxy.stats import ServiceStats, WindowStats


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
    assert stats.windows("s") == {30: WindowStats(2, 0.5), 60: WindowStats(3, 0.5), 300: WindowStats(4, 0.625)}
    assert stats.windows("other")[30] == WindowStats(0, 0.0)
    assert stats.in_flight("s") == 0


def test_what_is_in_flight_is_known_and_gone_services_are_forgotten() -> None:
    stats = ServiceStats(Clock())
    started = stats.start("gone")
    stats.start("busy")
    assert stats.in_flight("gone") == 1
    stats.finish("gone", started)
    stats.forget_all_but({"other"})
    assert stats.windows("gone")[300].requests == 0
    assert stats.in_flight("busy") == 1
