"""The entries that lead into jobs, case by case as the wire has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dstack.api.errors import AttachError
from dstack.api.ssh.hosts import (
    LocalFiles,
    Route,
    find_door,
    has_way_in,
    host_name,
    route_through_door,
    route_to_host,
)

FILES = LocalFiles(Path("/h/key"), Path("/h/told"), Path("/h/learned"), "python carrier.py")
PLACED = {
    "hostname": "10.0.0.5",
    "ssh_port": 2222,
    "username": "ubuntu",
    "dockerized": True,
    "ssh_proxy": None,
    "backend": "remote",
    "instance_id": "i-1",
}
ID = "0f3e9a52-7f8e-4a44-9d2c-000000000001"


def _job(
    placed: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
    told: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    submission = {"id": ID, "status": "running", "job_provisioning_data": placed, "job_runtime_data": runtime}
    fields = {"job_name": "train-0-0", "job_num": 0, "replica_num": 0, "user": None} | spec
    return {"job_spec": fields, "job_submissions": [submission], "job_connection_info": told}


def _shown(route: Route) -> list[tuple[str, str, str, str, str | None]]:
    """Name, address, port, user and what is in front."""
    shown = []
    for entry in route.entries:
        options = dict(entry.options)
        before = options.get("ProxyJump") or options.get("ProxyCommand")
        shown.append((entry.name, options["HostName"], options["Port"], options["User"], before))
    return shown


JUMP = {"ssh_proxy": {"hostname": "bastion", "port": 2200, "username": "jump"}}
HOST = ("train-host", "10.0.0.5", "2222", "ubuntu")


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        pytest.param(
            _job(PLACED),
            [(*HOST, None), ("train", "localhost", "10022", "root", "train-host")],
            id="dockerized",
        ),
        pytest.param(
            _job(PLACED, {"ports": {"10022": 32777}, "username": "dev"}),
            [(*HOST, None), ("train", "localhost", "32777", "dev", "train-host")],
            id="published port, user of the runtime",
        ),
        pytest.param(
            _job(PLACED, {"ports": None, "username": None}, user={"username": "me", "uid": None}),
            [(*HOST, None), ("train", "localhost", "10022", "me", "train-host")],
            id="user of the job",
        ),
        pytest.param(
            _job(PLACED | JUMP),
            [
                ("train-jump-host", "bastion", "2200", "jump", None),
                (*HOST, "train-jump-host"),
                ("train", "localhost", "10022", "root", "train-host"),
            ],
            id="dockerized, far away",
        ),
        pytest.param(
            _job(PLACED | {"dockerized": False}),
            [("train", "10.0.0.5", "2222", "root", None)],
            id="a machine of its own",
        ),
        pytest.param(
            _job(PLACED | JUMP | {"dockerized": False, "ssh_port": None}, {"username": "dev"}),
            [
                ("train-jump-host", "bastion", "2200", "jump", None),
                ("train", "10.0.0.5", "22", "dev", "train-jump-host"),
            ],
            id="a machine of its own, far away",
        ),
    ],
)
def test_ways_to_a_host(job: dict[str, Any], expected: list[tuple[str, ...]]) -> None:
    route = route_to_host(job, FILES)
    assert _shown(route) == expected
    assert route.tunnel_user == "root"


PROXIED = {"sshproxy_upstream_id": "u1", "sshproxy_hostname": "proxy.example", "sshproxy_port": None}
DOOR = {"hostname": "door.example", "port": 3022, "username": ID, "host_key": "ssh-ed25519 AAAA"}


@pytest.mark.parametrize(
    ("told", "use_carrier", "expected", "checking"),
    [
        pytest.param(
            PROXIED,
            False,
            ("train", "proxy.example", "22", "u1", None),
            "accept-new",
            id="another SSH proxy",
        ),
        pytest.param(
            PROXIED | {"ssh_door": DOOR},
            False,
            ("train", "door.example", "3022", ID, None),
            "yes",
            id="the door's port",
        ),
        pytest.param(
            {"ssh_door": DOOR | {"hostname": None, "port": None}},
            True,
            ("train", "localhost", "22", ID, "python carrier.py"),
            "yes",
            id="the carrier alone",
        ),
    ],
)
def test_ways_through_a_door(
    told: dict[str, Any], use_carrier: bool, expected: tuple[str, ...], checking: str
) -> None:
    job = _job(PLACED, told=told)
    door = find_door(job)
    assert door is not None
    route = route_through_door(job, door, FILES, use_carrier=use_carrier)
    assert _shown(route) == [expected]
    assert dict(route.entries[0].options)["StrictHostKeyChecking"] == checking
    assert route.tunnel_user == (expected[3] if checking == "yes" else "u1_root")
    assert route.told_keys == ("train ssh-ed25519 AAAA\n" if checking == "yes" else "")


def test_no_door_without_an_id() -> None:
    assert find_door(_job(PLACED, told={"attached_ssh_command": ["ssh", "train"]})) is None
    assert find_door(_job(PLACED)) is None


def test_keys_are_always_checked() -> None:
    for entry in route_to_host(_job(PLACED | JUMP), FILES).entries:
        options = dict(entry.options)
        assert options["StrictHostKeyChecking"] == "accept-new"
        assert options["UserKnownHostsFile"] == '"/h/learned"'
        assert options["IdentityFile"] == '"/h/key"'
        assert options["IdentitiesOnly"] == "yes"


@pytest.mark.parametrize(
    ("replica", "number", "name"), [(0, 0, "train"), (1, 0, "train-0-1"), (0, 2, "train-2-0")]
)
def test_the_name(replica: int, number: int, name: str) -> None:
    job = _job(PLACED, job_name=f"train-{number}-{replica}", job_num=number, replica_num=replica)
    assert host_name(job) == name
    assert [entry.name for entry in route_to_host(job, FILES).entries] == [f"{name}-host", name]


@pytest.mark.parametrize("text", ["a b", "x\nProxyCommand evil", "-oProxyCommand=evil", "$(evil)", "", "'"])
def test_a_server_cannot_slip_in_options(text: str) -> None:
    with pytest.raises(AttachError, match="no name of a host or user"):
        route_to_host(_job(PLACED | {"hostname": text or " "}), FILES)


def test_a_job_that_is_nowhere() -> None:
    assert not has_way_in(_job(None))
    assert not has_way_in(_job(PLACED | {"hostname": None}))
    assert has_way_in(_job(PLACED))
    assert has_way_in(_job(None, told=PROXIED))


def test_rendering() -> None:
    entry = route_to_host(_job(PLACED | {"dockerized": False}), FILES).entries[0]
    assert entry.render() == (
        "Host train\n"
        "    HostName 10.0.0.5\n"
        "    Port 2222\n"
        "    User root\n"
        '    IdentityFile "/h/key"\n'
        "    IdentitiesOnly yes\n"
        "    StrictHostKeyChecking accept-new\n"
        '    UserKnownHostsFile "/h/learned"\n'
        f"    HostKeyAlias {ID}\n"
        "    ServerAliveInterval 20\n"
    )
