"""Which hosts can run jobs, from what was found out about them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstack.core.errors import HostUnfit
from dstack.server.hosts.ssh.probing import NEEDED_BYTES, HostProbe, checked
from dstack.server.hosts.ssh.target import SSHTarget

TARGET = SSHTarget("10.0.0.5", "ubuntu")
FIT = HostProbe(
    system="Linux",
    python="/usr/bin/python3",
    user="ubuntu",
    is_root=False,
    as_root=True,
    folder="/var/lib/dstack",
    docker="usable",
    free_bytes=NEEDED_BYTES,
)


@pytest.mark.parametrize(
    "found",
    [
        FIT,
        replace(FIT, is_root=True, user="root"),
        replace(FIT, docker="absent"),
        replace(FIT, docker="down"),
        replace(FIT, docker="denied"),
        replace(FIT, docker="absent", as_root=False),
        replace(FIT, docker="usable", as_root=False),
    ],
)
def test_a_host_that_can_run_jobs_is_taken_as_it_is(found: HostProbe) -> None:
    assert checked(found, TARGET) is found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (replace(FIT, system="FreeBSD"), "ubuntu@10.0.0.5 runs FreeBSD; dstack needs Linux"),
        (
            replace(FIT, free_bytes=NEEDED_BYTES - 1),
            "The disk of ubuntu@10.0.0.5 is too full: 99 MiB are free for /var/lib/dstack, 100 MiB are needed",
        ),
        (
            replace(FIT, docker="denied", as_root=False),
            "ubuntu may not use Docker on ubuntu@10.0.0.5 and has no passwordless sudo; "
            "add it to the docker group or allow sudo",
        ),
    ],
)
def test_what_is_missing_is_told(found: HostProbe, message: str) -> None:
    with pytest.raises(HostUnfit) as told:
        checked(found, TARGET)
    assert str(told.value) == message


@pytest.mark.parametrize(
    ("is_root", "as_root", "sudo"),
    [(True, True, ""), (False, True, "sudo -n "), (False, False, "")],
)
def test_sudo_is_used_only_where_it_is_needed_and_allowed(is_root: bool, as_root: bool, sudo: str) -> None:
    assert replace(FIT, is_root=is_root, as_root=as_root).sudo == sudo


def test_a_target_is_stored_with_its_jump_host_and_shown_without_keys() -> None:
    jump = SSHTarget("head", "admin", 2222, ("JUMPKEY",))
    target = SSHTarget("10.0.0.5", "ubuntu", private_keys=("HOSTKEY",), host_key="ssh-ed25519 AAAA", jump=jump)
    assert SSHTarget.load(target.dump()) == target
    assert "KEY" not in repr(target)
    assert (str(target), str(jump)) == ("ubuntu@10.0.0.5", "admin@head:2222")
