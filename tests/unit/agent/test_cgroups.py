"""Where the control groups of tasks are, and what is written into them; on texts and plain folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstack.agent.executors import cgroups
from dstack.agent.executors.cgroups import CPU, MEMORY, Cgroups, Group, Place, Unavailable, find_place

TMPFS = "24 22 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
V1_MOUNTS = TMPFS + (
    "30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
    "31 24 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
    "32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
V1_GROUPS = "4:memory:/system.slice/dstack-agent.service\n2:cpu,cpuacct:/\n1:name=systemd:/init\n0::/init\n"
V2_MOUNTS = "24 22 0:21 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
MIB = 1024**2


def test_version_1_has_a_tree_for_each_controller() -> None:
    memory, cpu = (find_place(name, V1_GROUPS, V1_MOUNTS) for name in (MEMORY, CPU))
    assert (memory.version, memory.base) == (1, "/sys/fs/cgroup/memory/system.slice/dstack-agent.service")
    assert (cpu.version, cpu.base) == (1, "/sys/fs/cgroup/cpu,cpuacct")


@pytest.mark.parametrize("controller", [MEMORY, CPU])
@pytest.mark.parametrize(
    ("own", "base"),
    [
        ("/system.slice/dstack-agent.service", "/sys/fs/cgroup/system.slice"),
        ("/user.slice/user-0.slice/session-3.scope", "/sys/fs/cgroup/user.slice/user-0.slice"),
        ("/init.scope", "/sys/fs/cgroup"),
        ("/", "/sys/fs/cgroup"),
    ],
)
def test_version_2_puts_tasks_beside_the_agent(controller: str, own: str, base: str) -> None:
    assert find_place(controller, f"0::{own}\n", V2_MOUNTS) == Place(controller, 2, "/sys/fs/cgroup", base)


def test_a_mount_shows_a_part_of_the_tree_only() -> None:
    mounts = "31 24 0:27 /docker/abc /sys/fs/c\\040group ro - cgroup cgroup rw,memory\n"
    place = find_place(MEMORY, "4:memory:/docker/abc/inner\n", mounts)
    assert (place.mount, place.base) == ("/sys/fs/c group", "/sys/fs/c group/inner")
    with pytest.raises(Unavailable, match=r"no mount .* has that of the agent, /docker/other"):
        find_place(MEMORY, "4:memory:/docker/other\n", mounts)


def test_a_host_without_control_groups_is_told_as_one() -> None:
    with pytest.raises(Unavailable, match="the kernel has no memory controller"):
        find_place(MEMORY, "1:name=systemd:/\n", V1_MOUNTS)
    with pytest.raises(Unavailable, match="no mount"):
        find_place(CPU, "0::/\n", TMPFS)


@pytest.mark.parametrize(
    ("controller", "version", "amount", "expected"),
    [
        (MEMORY, 1, 64 * MIB, {"memory.limit_in_bytes": "67108864", "memory.memsw.limit_in_bytes": "67108864"}),
        (MEMORY, 2, 64 * MIB, {"memory.max": "67108864", "memory.swap.max": "0"}),
        (CPU, 1, 1.5, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}),
        (CPU, 2, 1.5, {"cpu.max": "150000 100000"}),
        (CPU, 2, 0.001, {"cpu.max": "1000 100000"}),
    ],
)
def test_what_a_limit_is_to_the_kernel(
    controller: str, version: int, amount: float, expected: dict[str, str]
) -> None:
    assert dict(cgroups.limit(Place(controller, version, "/m", "/m"), amount)) == expected


@pytest.mark.parametrize(
    ("version", "name", "text"),
    [
        (1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"),
        (2, "memory.events", "low 0\nhigh 0\nmax 12\noom 1\noom_kill {}\noom_group_kill 0\n"),
    ],
)
def test_a_kill_for_memory_is_told_with_the_limit(tmp_path: Path, version: int, name: str, text: str) -> None:
    (tmp_path / "group").mkdir()
    group = Group((Place(MEMORY, version, str(tmp_path), str(tmp_path)),), "group", 512 * MIB)
    (tmp_path / "group" / name).write_text(text.format(0))
    assert group.ending() == ""
    (tmp_path / "group" / name).write_text(text.format(3))
    assert group.ending() == "killed because it used more memory than it may (512MB)"


def test_kernels_that_do_not_count_kills_tell_of_none(tmp_path: Path) -> None:
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
    assert cgroups.oom_kills(1, str(tmp_path)) == 0


def test_sizes_are_told_as_the_user_writes_them() -> None:
    assert cgroups.memory_message(int(1.5 * 1024 * MIB)).endswith("(1.5GB)")
    assert cgroups.memory_message(0) == "killed because the host had no memory left"


@pytest.mark.parametrize("text", ["0::/agent\n", "1:memory:/agent\n2:cpu:/agent\n"])
def test_who_may_not_make_groups_says_so_and_leaves_nothing(tmp_path: Path, text: str) -> None:
    """A plain folder takes no command of a kernel: neither can a read-only or somebody else's."""
    proc, tree = tmp_path / "proc", tmp_path / "tree"
    proc.mkdir()
    (tree / "agent").mkdir(parents=True)
    kinds = ("cgroup2 cgroup2 rw", "cgroup cgroup rw,memory", "cgroup cgroup rw,cpu")
    (proc / "cgroup").write_text(text)
    (proc / "mountinfo").write_text("".join(f"1 0 0:1 / {tree} rw - {kind}\n" for kind in kinds))
    found = Cgroups("0123456789", str(proc))
    assert found.places == []
    assert f"no limits on the memory of processes: the agent cannot make control groups in {tree}" in found.error
    assert "no limits on the cpu of processes" in found.error
    assert [path for path in tree.rglob("*") if "dstack" in path.name] == []


def test_a_task_without_groups_has_none_to_remove(tmp_path: Path) -> None:
    assert cgroups.remove_groups(str(tmp_path))
    record = tmp_path / cgroups.RECORD
    record.write_text('{"groups":["' + str(tmp_path / "gone-with-a-reboot") + '"]}')
    assert cgroups.remove_groups(str(tmp_path))
    assert not record.exists()
