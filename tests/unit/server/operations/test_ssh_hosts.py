"""The hosts of an SSH fleet as its file says."""

from __future__ import annotations

from typing import Any

import pytest

from dstack.core.configurations.fleet import FleetConfiguration, SSHParams
from dstack.core.diff import hosts_by_name
from dstack.core.errors import InvalidRequest
from dstack.core.fleets import FleetSpec
from dstack.server.hosts.ssh.target import SSHTarget
from dstack.server.operations import ssh_hosts

KEY = {"public": "ssh-ed25519 AAAA", "private": "FLEETKEY"}
JUMP = {"hostname": "head", "user": "admin", "identity_file": "id", "ssh_key": KEY | {"private": "JUMPKEY"}}


def configured(**ssh: Any) -> FleetConfiguration:
    ssh_config = {"user": "ubuntu", "ssh_key": KEY, "hosts": ["a", "b"], **ssh}
    return FleetConfiguration.model_validate({"type": "fleet", "name": "onprem", "ssh_config": ssh_config})


def params(**ssh: Any) -> SSHParams:
    found = configured(**ssh).ssh_config
    assert found is not None
    return found


@pytest.mark.parametrize(
    "ssh",
    [
        {},
        {"network": "10.0.0.0/8"},
        {"hosts": [{"hostname": "a", "internal_ip": "10.0.0.1"}, {"hostname": "b", "internal_ip": "10.0.0.2"}]},
        {"user": None, "hosts": [{"hostname": "a", "user": "root"}]},
        {"ssh_key": None, "hosts": [{"hostname": "a", "ssh_key": KEY}]},
        {"proxy_jump": JUMP},
    ],
)
def test_a_file_that_says_all_is_accepted(ssh: dict[str, Any]) -> None:
    configuration = configured(**ssh)
    ssh_hosts.check(configuration, params(**ssh))


@pytest.mark.parametrize(
    ("ssh", "message"),
    [
        ({"hosts": []}, "`ssh_config.hosts` is empty; name at least one host"),
        ({"hosts": ["a", {"hostname": "a"}]}, "`ssh_config.hosts` names a host twice; each may be there once"),
        (
            {"network": "10.0.0.0/8", "hosts": [{"hostname": "a", "internal_ip": "10.0.0.1"}]},
            "Give either `network` or an `internal_ip` for each host, not both",
        ),
        (
            {"hosts": [{"hostname": "a", "internal_ip": "10.0.0.1"}, "b"]},
            "Give `internal_ip` for all hosts or for none",
        ),
        (
            {"user": None, "hosts": [{"hostname": "a", "user": "root"}, "b"]},
            "Host b has no `user`; set it there or for all in `ssh_config`",
        ),
        ({"ssh_key": None}, "There is no private key for host a; set `identity_file`"),
        (
            {"ssh_key": {"public": "ssh-ed25519 AAAA"}},
            "There is no private key for host a; set `identity_file`",
        ),
        (
            {"proxy_jump": JUMP | {"ssh_key": None}},
            "There is no private key for the `proxy_jump` head; set `identity_file`",
        ),
    ],
)
def test_what_is_wrong_is_told(ssh: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        ssh_hosts.check(configured(**ssh), params(**ssh))
    assert str(told.value) == message


def test_a_host_has_what_its_entry_says_and_else_what_the_fleet_says() -> None:
    own = {
        "hostname": "b",
        "user": "root",
        "port": 2222,
        "ssh_key": KEY | {"private": "OWNKEY"},
        "host_key": "ssh-ed25519 AAAA",
        "proxy_jump": JUMP | {"host_key": "head ssh-ed25519 BBBB comment"},
    }
    ssh = params(port=22022, hosts=["a", own])
    plain, special = (ssh_hosts.target_of(host, ssh) for host in hosts_by_name(ssh).values())
    assert plain == SSHTarget("a", "ubuntu", 22022, ("FLEETKEY",))
    jump = SSHTarget("head", "admin", 22, ("JUMPKEY",), "ssh-ed25519 BBBB")
    assert special == SSHTarget("b", "root", 2222, ("OWNKEY",), "ssh-ed25519 AAAA", jump)


def test_the_host_key_of_a_jump_host_is_on_the_wire_only_where_it_is_given() -> None:
    told = [params(proxy_jump=JUMP | extra).model_dump() for extra in ({}, {"host_key": "ssh-ed25519 BBBB"})]
    assert [one["proxy_jump"].get("host_key", "absent") for one in told] == ["absent", "ssh-ed25519 BBBB"]


def test_nothing_that_is_shown_has_a_key() -> None:
    own = {"hostname": "b", "ssh_key": KEY | {"private": "OWNKEY"}, "proxy_jump": JUMP}
    spec = FleetSpec.model_validate(
        {"configuration": configured(hosts=["a", own], proxy_jump=JUMP), "profile": {"name": "default"}}
    )
    shown = ssh_hosts.without_keys(spec).model_dump_json()
    assert "KEY" in spec.model_dump_json()
    assert "KEY" not in shown
    assert '"head"' in shown


def test_a_fleet_without_hosts_is_shown_as_it_is() -> None:
    spec = FleetSpec.model_validate(
        {"configuration": {"type": "fleet", "name": "cloud", "nodes": 1}, "profile": {"name": "default"}}
    )
    assert ssh_hosts.without_keys(spec) is spec


@pytest.mark.parametrize(
    ("known", "wanted", "coming", "going", "nums"),
    [
        ({}, ["a", "b"], ["a", "b"], [], [0, 1]),
        ({"a": 0, "b": 1}, ["b", "a"], [], [], []),
        ({"a": 0, "b": 1}, ["b", "c"], ["c"], ["a"], [0]),
        ({"a": 0, "b": 1, "c": 2}, ["a", "c", "d", "e"], ["d", "e"], ["b"], [1, 3]),
        ({"a": 7}, ["a", "b"], ["b"], [], [0]),
        ({"a": 0}, ["b"], ["b"], ["a"], [0]),
    ],
)
def test_hosts_come_and_go_and_keep_their_numbers(
    known: dict[str, int], wanted: list[str], coming: list[str], going: list[str], nums: list[int]
) -> None:
    assert ssh_hosts.changes(known, params(hosts=wanted)) == (coming, going, nums)
