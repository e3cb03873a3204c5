"""Accelerators: the vendors' formats, and who gets which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dstack.agent.executors.container_spec import container_config
from dstack.agent.gpu import parse
from dstack.agent.gpu.parse import Gpu
from dstack.agent.gpu.pool import GpuPool, GpusTaken
from dstack.agent.protocol import TaskSpec
from dstack.agent.tasks import Tasks

NVIDIA = "GPU-1f, NVIDIA A100-SXM4-80GB, 81920, 535.104.05\nGPU-2f, NVIDIA A100-SXM4-80GB, 81920, 535.104.05\n"
INTEL = "0, HL-225, 98304, 1.18.0-ee698fb\n1, HL-225, 98304, 1.18.0-ee698fb\n"
AMD = [
    {"gpu": 0, "asic": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002"},
     "vram": {"type": "HBM", "size": {"value": 196592, "unit": "MB"}},
     "driver": {"name": "amdgpu", "version": "6.8.5"}}
]  # fmt: skip
ROCM = {
    "card0": {"Card Series": "AMD Instinct MI210", "VRAM Total Memory (B)": "68702699520"},
    "system": {"Driver version": "6.3.6"},
}
TENSTORRENT = {
    "host_info": {"Driver": "TT-KMD 1.33"},
    "device_info": [{"board_info": {"board_type": "n300 L"}}, {"board_info": {"board_type": "n300 R"}}],
}


def test_each_vendors_format_is_read() -> None:
    gpus, driver = parse.parse_nvidia(NVIDIA)
    assert (gpus[1], driver) == (Gpu("nvidia", "A100-SXM4-80GB", 81920, "GPU-2f"), "535.104.05")
    gpus, driver = parse.parse_intel(INTEL)
    assert (gpus[1], driver) == (Gpu("intel", "HL-225", 98304, "1"), "1.18.0-ee698fb")
    expected = ([Gpu("amd", "AMD Instinct MI300X", 196592, "0")], "6.8.5")
    assert parse.parse_amd_smi(json.dumps(AMD)) == expected
    assert parse.parse_amd_smi(json.dumps({"gpu_data": AMD})) == expected
    assert parse.parse_rocm_smi(json.dumps(ROCM)) == ([Gpu("amd", "AMD Instinct MI210", 65520, "0")], "6.3.6")
    gpus, driver = parse.parse_tenstorrent(json.dumps(TENSTORRENT))
    assert (gpus[1], driver) == (Gpu("tenstorrent", "n300", 12288, "1"), "1.33")


@pytest.mark.parametrize("reader", [parse.parse_nvidia, parse.parse_amd_smi, parse.parse_tenstorrent])
def test_other_text_is_refused(reader: object) -> None:
    assert callable(reader)
    with pytest.raises(ValueError):  # noqa: PT011 - the words are those of whoever finds it
        reader("No devices were found")


def spec(gpu: int) -> TaskSpec:
    return TaskSpec(f"task{gpu}", "t", "container", [], image="i", gpu=gpu)


def test_an_accelerator_belongs_to_one_living_task(tmp_path: Path) -> None:
    tasks = Tasks(str(tmp_path), sync=False)
    pool = GpuPool(tasks, parse.parse_nvidia(NVIDIA)[0])
    first, second = tasks.create("a", spec(1)), tasks.create("b", spec(1))
    tasks.update(first, gpu_ids=pool.choose(first, spec(1)))
    tasks.update(second, gpu_ids=pool.choose(second, spec(1)))
    assert (first.state.gpu_ids, second.state.gpu_ids) == (["GPU-1f"], ["GPU-2f"])
    third = tasks.create("c", spec(1))
    with pytest.raises(GpusTaken, match="needs 1 GPUs, but 0 of the host's 2 are free"):
        pool.choose(third, spec(1))
    tasks.end(first, "done_by_runner")
    assert GpuPool(Tasks(str(tmp_path), sync=False), pool.gpus).choose(third, spec(1)) == ["GPU-1f"]


def test_a_process_sees_its_accelerators_alone(tmp_path: Path) -> None:
    pool = GpuPool(Tasks(str(tmp_path), sync=False), parse.parse_nvidia(NVIDIA)[0])
    assert pool.environment(["GPU-2f"]) == {"CUDA_VISIBLE_DEVICES": "GPU-2f"}
    assert pool.environment([]) == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_container_gets_its_accelerators_alone() -> None:
    config = container_config(spec(1), {}, [Gpu("nvidia", "A100", 81920, "GPU-2f")])
    assert config["HostConfig"]["DeviceRequests"] == [{"Capabilities": [["gpu"]], "DeviceIDs": ["GPU-2f"]}]
    config = container_config(spec(1), {}, [Gpu("amd", "MI300X", 196592, "3")])
    assert config["Env"] == ["ROCR_VISIBLE_DEVICES=3"]
