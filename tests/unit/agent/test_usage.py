"""CPU, memory and load of accelerators: what Linux, Docker and the vendors' tools print."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from dstack.agent import usage
from dstack.agent.gpu import usage as gpu_usage
from dstack.agent.protocol import GpuMetrics
from dstack.agent.usage import NotRunning, Usage

MIB = 1024 * 1024
STAT = (
    "4242 (sh (odd) name) S 1 4242 4242 0 -1 4194560 2000 90000 0 3 150 50 1200 100 20 0 1 0 8000 2400000 300 "
    "18446744073709551615 1 1 0 0 0 0 0 4096 65538 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0"
)
STATUS = (
    "Name:\tpython\nState:\tS (sleeping)\nVmRSS:\t   10240 kB\n"
    "RssAnon:\t    6000 kB\nRssFile:\t    4000 kB\nRssShmem:\t     240 kB\n"
)
CGROUP_V1: dict[str, Any] = {
    "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000, "percpu_usage": [1_500_000_000, 1_000_000_000]}},
    "memory_stats": {
        "usage": 300 * MIB,
        "max_usage": 400 * MIB,
        "stats": {"cache": 120 * MIB, "inactive_file": 1, "total_inactive_file": 100 * MIB},
        "limit": 1024 * MIB,
    },
}  # fmt: skip
CGROUP_V2: dict[str, Any] = {
    "cpu_stats": {
        "cpu_usage": {"total_usage": 2_500_000_000, "usage_in_kernelmode": 1, "usage_in_usermode": 2},
        "online_cpus": 2,
    },
    "memory_stats": {
        "usage": 300 * MIB,
        "stats": {"anon": 150 * MIB, "file": 120 * MIB, "inactive_file": 100 * MIB},
        "limit": 1024 * MIB,
    },
}
AMD = [
    {"gpu": 0, "usage": {"gfx_activity": {"value": 37, "unit": "%"}, "umc_activity": {"value": 2, "unit": "%"}},
     "mem_usage": {"total_vram": {"value": 196592, "unit": "MB"}, "used_vram": {"value": 283, "unit": "MB"}}},
    {"gpu": 1, "usage": "N/A", "mem_usage": {"used_vram": {"value": 5, "unit": "MB"}}},
]  # fmt: skip
ROCM = {
    "card0": {
        "GPU use (%)": "12",
        "VRAM Total Memory (B)": "68702699520",
        "VRAM Total Used Memory (B)": "10960896",
    },
    "system": {"Driver version": "6.3.6"},
}


def test_what_linux_tells_of_a_process() -> None:
    assert usage.parse_stat(STAT) == 150 + 50 + 1200 + 100
    assert usage.parse_status(STATUS) == (10240 * 1024, 6240 * 1024)
    assert usage.parse_status("Name:\tsh\nState:\tZ (zombie)\n") == (0, 0)


@pytest.mark.parametrize("recorded", [CGROUP_V1, CGROUP_V2], ids=["cgroup-v1", "cgroup-v2"])
def test_what_docker_tells_of_a_container(recorded: dict[str, Any]) -> None:
    assert usage.parse_docker_stats(recorded) == Usage(2_500_000, 300 * MIB, 200 * MIB)


def test_a_container_that_has_ended_is_not_measured() -> None:
    with pytest.raises(NotRunning):
        usage.parse_docker_stats({"cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {}})


def test_a_process_that_is_gone_is_not_measured() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(NotRunning):
        usage.of_processes(child)


def test_each_vendors_format_is_read() -> None:
    nvidia = "GPU-1f, 1024, 35\nGPU-2f, 0, [N/A]\nGPU-3f, 3, [Not Supported]\n"
    assert gpu_usage.parse_nvidia(nvidia) == {
        "GPU-1f": GpuMetrics(1024 * MIB, 35),
        "GPU-2f": GpuMetrics(0, 0),
        "GPU-3f": GpuMetrics(3 * MIB, 0),
    }
    assert gpu_usage.parse_intel("0, 768, 99\n1, 512, 0\n")["0"] == GpuMetrics(768 * MIB, 99)
    expected = {"0": GpuMetrics(283 * MIB, 37), "1": GpuMetrics(5 * MIB, 0)}
    assert gpu_usage.parse_amd_smi(json.dumps(AMD)) == expected
    assert gpu_usage.parse_amd_smi(json.dumps({"gpu_data": AMD})) == expected
    assert gpu_usage.parse_rocm_smi(json.dumps(ROCM)) == {"0": GpuMetrics(10960896, 12)}


@pytest.mark.parametrize("text", ["No devices were found", "GPU-1f, lots, 3"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are those of whoever finds it
        gpu_usage.parse_nvidia(text)
