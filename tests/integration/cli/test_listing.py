"""Commands that only read, against recorded answers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import ReplayServer, load_capture, recorded


def test_ps_asks_as_recorded(cli: Cli, server: ReplayServer) -> None:
    server.on("/api/runs/list", recorded("05"))
    cli("ps")
    cli("ps", "-a")
    asked = server.bodies("/api/runs/list")
    assert asked[0] == load_capture("05")["request"]["body"]
    assert asked[1] == load_capture("05")["request"]["body"] | {"only_active": False, "limit": 1}
    assert asked[2] == load_capture("06")["request"]["body"]
    headers = server.requests[0][1]
    assert headers["Authorization"] == "Bearer tok"
    assert headers["X-API-VERSION"] == "0.22.5"
    assert headers["Content-Type"] == "application/json"


def test_ps_prints_a_table(cli: Cli, server: ReplayServer) -> None:
    server.on("/api/runs/list", recorded("06"))
    status, out = cli("ps", "-a")
    assert status == 0
    lines = [line.split("  ") for line in out.splitlines()]
    assert [[cell.strip() for cell in line if cell.strip()][:2] for line in lines] == [
        ["NAME", "BACKEND"],
        ["d1", "submitted"],
        ["t1", "submitted"],
    ]
    assert all(len(line) <= 80 for line in out.splitlines())


def test_ps_json_is_the_api(cli: Cli, server: ReplayServer) -> None:
    server.on("/api/runs/list", recorded("06"))
    status, out = cli("ps", "-a", "--json")
    assert status == 0
    assert json.loads(out) == {"project": "main", "runs": recorded("06")[1]}


def test_a_busy_fleet(cli: Cli, server: ReplayServer) -> None:
    server.replay("10")
    status, out = cli("fleet")
    assert status == 0
    assert [re.sub(r"\d+ \w+ ago$", "X ago", line)[:68].rstrip() for line in out.splitlines()] == [
        "NAME          NODES GPU         SPOT BACKEND      PRICE STATUS CREAT",
        "f1            0..2                   *                  active X ago",
        "   instance=0       H100:80GB:1      ssh (remote) $0    busy   X ago",
    ]


def test_what_is_wrong_with_instances_is_told_below_the_table(cli: Cli, server: ReplayServer) -> None:
    status, [fleet] = recorded("10")
    well = fleet["instances"][0]
    refusal = "root@10.0.0.2 refused the login: check `user`, and that the key is in its authorized_keys"
    refused = {"instance_num": 1, "hostname": "10.0.0.2", "status": "pending", "instance_type": None}
    silent = {"instance_num": 2, "hostname": "10.0.0.3", "unreachable": True, "total_blocks": 8, "busy_blocks": 2}
    fleet["instances"] += [
        {**well, **refused, "price": None, "backend": None, "termination_reason_message": refusal},
        {**well, **silent, "termination_reason_message": "root@10.0.0.3 does not answer"},
        {**well, "instance_num": 3, "hostname": "10.0.0.4", "health_status": "warning"},
    ]
    server.on(load_capture("10")["request"]["path"], (status, [fleet]))
    _, out = cli("fleet")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    for line, told in zip(lines[2:6], ["busy", "pending", "unreachable", "busy (warning)"], strict=True):
        assert told in line
    notes = " ".join(line.strip() for line in lines[lines.index("") + 1 :])
    assert notes == (
        f"f1 instance=1 (10.0.0.2): {refusal} f1 instance=2 (10.0.0.3, 2/8 busy): root@10.0.0.3 does not answer"
    )


def test_secrets(cli: Cli, server: ReplayServer) -> None:
    server.replay("26", "27", "28")
    assert cli("secret") == (0, "NAME  VALUE\ntok   ******\n")
    assert cli("secret", "get", "tok") == (0, "NAME  VALUE\ntok   abc\n")
    assert cli("secret", "set", "tok", "abc") == (0, "Secret tok is set.\n")


def test_events_ask_as_recorded(cli: Cli, server: ReplayServer) -> None:
    server.replay("01", "29")
    status, out = cli("event")
    assert status == 0
    assert server.bodies("/api/events/list") == [load_capture("29")["request"]["body"]]
    assert len(out.splitlines()) == len(recorded("29")[1])
    assert out.splitlines()[-1].endswith("[👤admin] [secret tok] <text>")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((403, {"detail": {"msg": "Access denied", "code": None}}), "Access denied"),
        ((404, {"detail": {"msg": "No project main", "code": None}}), "No project main"),
        ((400, {"detail": [{"msg": "No", "code": "error"}]}), "No"),
        ((401, {"detail": "Not authenticated"}), "Not authenticated"),
        (
            (422, {"detail": [{"type": "x", "loc": ["body", "limit"], "msg": "too much", "input": 1}]}),
            "The server does not understand the request: limit: too much",
        ),
        ((500, "broken"), 'The server failed at /api/runs/list with status 500: "broken"'),
    ],
)
def test_what_the_server_refuses_is_one_line(
    cli: Cli, server: ReplayServer, answer: tuple[int, Any], message: str
) -> None:
    server.on("/api/runs/list", answer)
    assert cli("ps") == (1, message + "\n")


def test_an_unknown_run_is_one_line(cli: Cli, server: ReplayServer) -> None:
    server.replay("33")
    assert cli("stop", "nope", "-y") == (1, "<text>\n")
