"""`volume`, `gateway`, and applying and deleting both by their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import Answer, ReplayServer, load_capture, recorded

VOLUMES = "/api/project/main/volumes"
GATEWAYS = "/api/project/main/gateways"
GONE: Answer = (400, {"detail": [{"msg": "There is none", "code": "resource_not_exists"}]})
VOLUME_FILE = "type: volume\nname: v1\nbackend: aws\nregion: eu-west-1\nsize: 100GB\n"
GATEWAY_FILE = "type: gateway\nname: g1\nbackend: aws\nregion: eu-west-1\ndomain: example.com\n"


def volume(**changes: Any) -> dict[str, Any]:
    return {**recorded("24")[1], "status": "active", **changes}


def gateway(**changes: Any) -> dict[str, Any]:
    configuration = recorded("21")[1]["effective_spec"]["configuration"]
    return {
        "id": "11111111-1111-4111-8111-111111111111",
        "name": "g1",
        "project_name": "main",
        "configuration": configuration,
        "created_at": "2026-01-01T00:00:00Z",
        "status": "running",
        "default": True,
        "hostname": "203.0.113.1",
        "wildcard_domain": "*.example.com",
        "replicas": [],
        **changes,
    }


def test_volumes_as_a_table(cli: Cli, server: ReplayServer) -> None:
    server.replay("25")
    status, out = cli("volume", "-v")
    assert server.bodies(f"{VOLUMES}/list") == [None]
    assert status == 0
    assert out.split()[:7] == ["NAME", "BACKEND", "REGION", "STATUS", "ATTACHED", "CREATED", "ERROR"]
    assert [cell for cell in out.splitlines()[1].split("  ") if cell][:4] == ["v1", "aws", "eu-west-1", "failed"]
    plain = cli("volume", "list")[1]
    assert plain.splitlines()[0].split() == ["NAME", "BACKEND", "STATUS", "CREATED"]
    assert "aws (eu-west-1)" in plain


def test_where_a_volume_is_attached(cli: Cli, server: ReplayServer) -> None:
    instance = {"name": "f1-2", "fleet_name": "f1", "instance_num": 2}
    server.on(f"{VOLUMES}/list", (200, [volume(attachments=[{"instance": instance}])]))
    assert "f1 (2)" in cli("volume", "-v")[1]


def test_a_volume_as_json(cli: Cli, server: ReplayServer) -> None:
    server.on(f"{VOLUMES}/get", (200, volume()))
    status, out = cli("volume", "get", "v1", "--json")
    assert (status, json.loads(out)) == (0, volume())
    assert cli("volume", "get", "v1")[0] == 2


def test_a_volume_is_applied_as_recorded(cli: Cli, server: ReplayServer) -> None:
    Path(".dstack.yml").write_text(VOLUME_FILE)
    server.replay("04", "23", "24")
    server.on(f"{VOLUMES}/get", recorded("23"), (200, volume()))
    status, out = cli("apply", "-y")
    assert (status, "v1    aws (eu-west-1)  active" in out) == (0, True)
    assert server.bodies(f"{VOLUMES}/get")[0] == load_capture("23")["request"]["body"]
    assert server.bodies(f"{VOLUMES}/create") == [load_capture("24")["request"]["body"]]


def test_a_volume_that_fails_says_why(cli: Cli, server: ReplayServer) -> None:
    Path(".dstack.yml").write_text(VOLUME_FILE)
    server.replay("04", "24")
    failed = volume(status="failed", status_message="No such region")
    server.on(f"{VOLUMES}/get", GONE, (200, failed))
    status, out = cli("apply", "-y")
    assert (status, out.splitlines()[-1]) == (1, "The volume v1 failed: No such region")


def test_a_volume_that_is_there_is_made_again_only_when_told(cli: Cli, server: ReplayServer) -> None:
    Path(".dstack.yml").write_text(VOLUME_FILE)
    server.replay("04", "24")
    server.on(f"{VOLUMES}/get", (200, volume()))
    status, out = cli("apply", "-y")
    assert (status, "Pass --force" in out, server.bodies(f"{VOLUMES}/create")) == (0, True, [])
    assert cli("apply", stdin="n\n")[0] == 0
    server.on(f"{VOLUMES}/get", (200, volume()), GONE, (200, volume()))
    server.on(f"{VOLUMES}/delete", (200, None))
    assert cli("apply", stdin="y\n")[0] == 0
    assert server.bodies(f"{VOLUMES}/delete") == [{"names": ["v1"]}]


def test_deleting_a_volume(cli: Cli, server: ReplayServer) -> None:
    server.on(f"{VOLUMES}/delete", (200, None))
    server.on(f"{VOLUMES}/get", (200, volume()), (200, volume()), GONE)
    assert cli("volume", "delete", "v1", "-y") == (0, "Deleting v1…\nDeleted the volume v1.\n")
    Path(".dstack.yml").write_text(VOLUME_FILE)
    server.on(f"{VOLUMES}/get", (200, volume()), GONE)
    assert cli("delete", "-y") == (0, "Deleted the volume v1.\n")
    assert cli("volume", "delete", "v1", "-y") == (1, "There is none\n")


def test_gateways_as_a_table_and_as_json(cli: Cli, server: ReplayServer) -> None:
    server.on(f"{GATEWAYS}/list", (200, [gateway()]))
    status, out = cli("gateway")
    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["NAME", "BACKEND", "HOSTNAME", "DOMAIN", "DEFAULT", "STATUS"],
        ["g1", "aws", "(eu-west-1)", "203.0.113.1", "*.example.com", "✓", "running"],
    ]
    assert all(len(line) <= 80 for line in cli("gateway", "-v")[1].splitlines())
    assert json.loads(cli("gateway", "--json")[1]) == {"project": "main", "gateways": [gateway()]}
    assert server.bodies(f"{GATEWAYS}/list")[0] == {"include_imported": True}


def test_the_machines_of_a_gateway_are_rows_of_their_own(cli: Cli, server: ReplayServer) -> None:
    one = {"replica_num": 0, "created_at": "2026-01-01T00:00:00Z", "status": "running", "hostname": "203.0.113.1"}
    replicas = [one, {**one, "replica_num": 1, "hostname": "203.0.113.2"}]
    server.on(f"{GATEWAYS}/list", (200, [gateway(replicas=replicas, project_name="other")]))
    lines = cli("gateway")[1].splitlines()
    assert lines[1].startswith("other/g1")
    assert [line.split()[:2] for line in lines[2:]] == [["replica=0", "203.0.113.1"], ["replica=1", "203.0.113.2"]]


def test_a_gateway_is_planned_and_refused_as_recorded(cli: Cli, server: ReplayServer) -> None:
    Path("gw.dstack.yml").write_text(GATEWAY_FILE)
    server.replay("21", "22")
    assert cli("apply", "-f", "gw.dstack.yml", "-y")[0] == 1
    assert server.bodies(f"{GATEWAYS}/get_plan") == [load_capture("21")["request"]["body"]]
    assert server.bodies(f"{GATEWAYS}/apply") == [load_capture("22")["request"]["body"]]


def test_what_changes_in_place_and_what_does_not(cli: Cli, server: ReplayServer) -> None:
    Path("gw.dstack.yml").write_text(GATEWAY_FILE)
    plan = recorded("21")[1]
    before = gateway(configuration={**gateway()["configuration"], "domain": "old.org"})
    server.on(f"{GATEWAYS}/get_plan", (200, {**plan, "current_resource": before, "action": "update"}))
    server.on(f"{GATEWAYS}/apply", (200, gateway()))
    status, out = cli("apply", "-f", "gw.dstack.yml", stdin="y\n")
    assert (status, "domain: old.org -> example.com" in out, "in place" in out) == (0, True, True)
    assert server.bodies(f"{GATEWAYS}/apply")[0]["plan"]["current_resource"]["name"] == "g1"
    before = gateway(configuration={**gateway()["configuration"], "region": "us-east-1"})
    server.on(f"{GATEWAYS}/get_plan", (200, {**plan, "current_resource": before, "action": "create"}))
    server.on(f"{GATEWAYS}/delete", (200, None))
    server.on(f"{GATEWAYS}/get", GONE)
    assert cli("apply", "-f", "gw.dstack.yml", "-y")[0] == 0
    assert server.bodies(f"{GATEWAYS}/delete") == [{"names": ["g1"]}]
    assert server.bodies(f"{GATEWAYS}/apply")[1]["plan"]["current_resource"] is None


def test_updating_and_deleting_a_gateway(cli: Cli, server: ReplayServer) -> None:
    server.on(f"{GATEWAYS}/set_default", (200, None))
    server.on(f"{GATEWAYS}/set_wildcard_domain", (200, gateway()))
    assert cli("gateway", "update", "g1", "--set-default", "--domain", "a.org") == (0, "Updated the gateway g1.\n")
    assert server.bodies(f"{GATEWAYS}/set_default") == [{"name": "g1"}]
    assert server.bodies(f"{GATEWAYS}/set_wildcard_domain") == [{"name": "g1", "wildcard_domain": "a.org"}]
    cli("gateway", "update", "team/g2", "--set-default")
    assert server.bodies(f"{GATEWAYS}/set_default")[1] == {"name": "g2", "gateway_project": "team"}
    assert cli("gateway", "update", "g1")[0] == 1
    server.on(f"{GATEWAYS}/delete", (200, None))
    server.on(f"{GATEWAYS}/get", (200, gateway()), GONE)
    assert cli("gateway", "delete", "g1", "-y") == (0, "Deleted the gateway g1.\n")


def test_flags_of_runs_mean_nothing_for_a_volume(cli: Cli) -> None:
    Path(".dstack.yml").write_text(VOLUME_FILE)
    message = "--gpu means nothing for a volume: see `dstack apply -h volume`\n"
    assert cli("apply", "-y", "--gpu", "1") == (1, message)
