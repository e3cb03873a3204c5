"""The table of `dstack metrics`."""

from __future__ import annotations

from typing import Any

from dstack.cli.output.metrics import job_rows, sparkline

GIB = 1024**3


def series(**values: list[Any]) -> list[dict[str, Any]]:
    return [{"name": name, "timestamps": [], "values": found} for name, found in values.items()]


def test_cores_and_accelerators_have_a_row_each() -> None:
    rows = job_rows(
        "train-0-0",
        series(
            cpu_usage_percent=[200, 400, 0],
            cpus_detected_num=[4, 4, 4],
            memory_working_set_bytes=[4 * GIB, 2 * GIB, 0],
            memory_total_bytes=[8 * GIB] * 3,
            gpus_detected_num=[2, 2, 2],
            gpu_memory_total_bytes=[80 * GIB] * 3,
            gpu_util_percent_gpu0=[99, 50, 0],
            gpu_memory_usage_bytes_gpu0=[512 * 1024**2, 0, 0],
            gpu_util_percent_gpu1=[0, 0, 0],
            gpu_memory_usage_bytes_gpu1=[0, 0, 0],
        ),
    )
    assert rows == [
        ["train-0-0", "cpu", "▁█▅ 50%", "▁▃▅ 4GB/8GB"],
        ["", "gpu=0", "▁▅█ 99%", "▁▁▁ 512MB/80GB"],
        ["", "gpu=1", "▁▁▁ 0%", "▁▁▁ 0MB/80GB"],
    ]


def test_nothing_measured() -> None:
    assert job_rows("train-0-0", []) == [["train-0-0", "cpu", "no data", "no data"]]


def test_the_newest_value_is_at_the_right() -> None:
    assert sparkline([100, *[0] * 30], 100) == "▁" * 9 + "█"
    assert sparkline([1, 2], 0) == "▁▁"
