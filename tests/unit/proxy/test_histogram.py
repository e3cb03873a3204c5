from __future__ import annotations

from dstack.proxy.histogram import UNIT_SECONDS, add, bucket_of, percentile, upper_seconds


def test_every_duration_has_a_bucket_that_ends_a_little_later() -> None:
    before = 0
    for units in (*range(3000), *range(3000, 5_000_000, 997)):
        seconds = (units + 0.5) * UNIT_SECONDS
        bucket = bucket_of(seconds)
        assert bucket >= before
        assert seconds < upper_seconds(bucket) <= max(seconds * 1.13, seconds + UNIT_SECONDS)
        before = bucket
    assert bucket_of(-1.0) == 0


def test_percentiles() -> None:
    counts: dict[int, int] = {}
    assert percentile(counts, 0.5) is None
    for milliseconds in range(1, 101):
        add(counts, {bucket_of(milliseconds / 1000): 1})
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        found = percentile(counts, share)
        assert found is not None
        assert share / 10 <= found <= share / 10 * 1.15
