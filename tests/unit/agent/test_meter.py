"""Asking a vendor's tool: a script of its name stands on the path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dstack.agent.gpu.meter import GpuMeter
from dstack.agent.protocol import GpuMetrics


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return tmp_path


def install(folder: Path, name: str, script: str) -> None:
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


async def test_only_the_tasks_accelerators_are_told_and_calls_are_shared(tools: Path) -> None:
    install(tools, "nvidia-smi", f"echo call >> {tools}/calls; echo 'GPU-a, 1, 10'; echo 'GPU-b, 2, 20'")
    meter = GpuMeter("nvidia")
    assert await meter.measure(["GPU-b"]) == [GpuMetrics(2 * 1024**2, 20)]
    assert await meter.measure(["GPU-a", "GPU-gone"]) == [GpuMetrics(1024**2, 10)]
    assert (tools / "calls").read_text() == "call\n"


async def test_a_tool_that_fails_leaves_it_to_the_next(tools: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(tools, "amd-smi", "echo broken driver >&2; exit 3")
    install(tools, "rocm-smi", """echo '{"card0": {"GPU use (%)": "7", "VRAM Total Used Memory (B)": "5"}}'""")
    assert await GpuMeter("amd").measure(["0"]) == [GpuMetrics(5, 7)]
    assert "amd-smi failed (3): broken driver" in caplog.text


@pytest.mark.parametrize("vendor", ["nvidia", "tenstorrent"])
async def test_without_a_tool_there_is_nothing(tools: Path, vendor: str) -> None:
    assert await GpuMeter(vendor).measure(["0"]) == []
