"""The limits under control groups of version 2, on a kernel that runs as a process (User Mode Linux)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TESTS = "test_the_limits_outlive_the_agent or test_a_job_gets_no_more_cores"
_INIT = """#!/bin/sh
export PATH={path} HOME=/root TMPDIR=/run/tmp PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run
mount -t devtmpfs devtmpfs /dev; mkdir -p /dev/pts /dev/shm; mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm; mkdir $TMPDIR; ip link set lo up
mount -t cgroup2 cgroup2 /sys/fs/cgroup; mkdir -p /sys/fs/cgroup/some.slice/agent.service
echo $$ > /sys/fs/cgroup/some.slice/agent.service/cgroup.procs
cd {root}
{python} -m pytest tests/integration/agent/test_limits.py -k '{tests}' -q -p no:cacheprovider > {told} 2>&1
cat /sys/fs/cgroup/some.slice/cgroup.subtree_control >> {told}
sync; echo o > /proc/sysrq-trigger; sleep 60
"""
"""The file system is that of the host; what is mounted is seen in that kernel only."""


def test_the_limits_hold_under_version_2(tmp_path: Path) -> None:
    kernel = shutil.which("linux.uml")
    if kernel is None:
        pytest.skip("needs a kernel that runs as a process: the package user-mode-linux")
    init, told = tmp_path / "init", tmp_path / "told"
    path, python = os.environ["PATH"], sys.executable
    init.write_text(_INIT.format(path=path, root=ROOT, python=python, tests=TESTS, told=told))
    init.chmod(0o755)
    command = [kernel, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}", "mem=768M"]
    command += ["quiet", "con=null", "con0=null,fd:1", f"uml_dir={tmp_path}"]
    with open(tmp_path / "console", "wb") as console:
        running = subprocess.Popen(command, stdout=console, stderr=console, start_new_session=True)
        try:
            running.wait(300)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
    text = told.read_text() if told.exists() else (tmp_path / "console").read_text(errors="replace")
    assert "2 passed" in text, text
    assert {"cpu", "memory"} <= set(text.splitlines()[-1].split())
