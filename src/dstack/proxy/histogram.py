"""How long things took, as counts in buckets: cheap to add to, to add together, and to read percentiles from.

Each power of two has eight buckets, so that a percentile is told at most an eighth too high.
"""

from __future__ import annotations

from collections.abc import Mapping

UNIT_SECONDS = 1e-4
"""The first buckets are one unit wide."""


def bucket_of(seconds: float) -> int:
    """The bucket that a duration belongs to."""
    units = int(seconds / UNIT_SECONDS)
    if units < 8:
        return max(units, 0)
    power = units.bit_length() - 4
    return 8 * power + (units >> power)


def upper_seconds(bucket: int) -> float:
    """Where a bucket ends."""
    if bucket < 8:
        return (bucket + 1) * UNIT_SECONDS
    power, first = divmod(bucket, 8)
    return ((first + 8 + 1) << (power - 1)) * UNIT_SECONDS


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """What so great a share took at most, in seconds; None: nothing was counted."""
    left = share * sum(counts.values())
    for bucket in sorted(counts):
        left -= counts[bucket]
        if left <= 0:
            return upper_seconds(bucket)
    return None


def add(counts: dict[int, int], more: Mapping[int, int]) -> None:
    for bucket, count in more.items():
        counts[bucket] = counts.get(bucket, 0) + count
