"""Tables fit and say what they hide."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import pytest

from dstack.cli.output.tables import format_table
from dstack.cli.output.values import (
    format_age,
    format_backend,
    format_gpus,
    format_price,
    format_pulling,
    format_size,
    format_trigger,
)

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=timezone.utc)


def test_a_table_that_fits_is_left_alone() -> None:
    assert format_table(["NAME", "STATUS"], [["a-run", "running"]], width=80) == (
        ["NAME   STATUS", "a-run  running"],
        False,
    )


def test_the_widest_column_is_cut_first_and_names_last() -> None:
    rows = [["a-name-of-its-own", "x" * 60, "y" * 20]]
    lines, is_cut = format_table(["NAME", "X", "Y"], rows, width=50, keep=["NAME"])
    assert lines[1] == f"a-name-of-its-own {'x' * 14}… {'y' * 15}…"
    assert is_cut
    assert max(map(len, lines)) == 50


def test_cells_cannot_break_the_table() -> None:
    assert format_table(["A"], [["one\ntwo\x1b[31m"]], width=80)[0][1] == "one two [31m"


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        ("2030-01-01T11:59:55Z", "now"),
        ("2030-01-01T11:59:30Z", "30 secs ago"),
        ("2030-01-01T11:58:00Z", "2 mins ago"),
        ("2030-01-01T11:00:00Z", "1 hour ago"),
        ("2029-12-29T12:00:00.123Z", "2 days ago"),
        ("2029-12-01T12:00:00Z", "4 weeks ago"),
        (None, ""),
    ],
)
def test_ages(moment: str | None, words: str) -> None:
    assert format_age(moment, NOW) == words


def test_values() -> None:
    gpu = {"name": "A100", "memory_mib": 81920}
    assert format_gpus([gpu, gpu]) == "A100:80GB:2"
    assert [format_size(512), format_size(1536), format_size(2048)] == ["512MB", "1.5GB", "2GB"]
    assert [format_price(None), format_price(0), format_price(1.25)] == ["", "$0", "$1.25"]
    assert format_backend("aws", "us-east-1") == "aws (us-east-1)"
    assert format_backend("remote", "remote") == "ssh (remote)"
    assert format_backend("remote", "local") == "local"


def test_when_a_scheduled_run_starts() -> None:
    run = {"status": "pending", "next_triggered_at": "2030-01-02T09:00:00+00:00"}
    assert re.fullmatch(r" \(starts at 2030-01-0[123] \d\d:\d\d\)", format_trigger(run))
    assert format_trigger({**run, "status": "running"}) == ""
    assert format_trigger({**run, "next_triggered_at": None}) == ""


def test_how_far_a_pull_is() -> None:
    progress = {"downloaded_bytes": 3 * 2**20, "extracted_bytes": 2**20, "total_bytes": 2**30}
    assert format_pulling(None) == ""
    assert format_pulling({**progress, "is_total_bytes_final": True}) == " (3MB of 1GB, 1MB unpacked)"
    assert format_pulling({**progress, "is_total_bytes_final": False}) == " (3MB of at least 1GB, 1MB unpacked)"
    assert format_pulling({**progress, "total_bytes": 0, "is_total_bytes_final": False}) == ""
