"""`dstack token` against recorded answers."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import ReplayServer

TOKEN = {
    "id": "5b9aae25-4d5c-4b70-a3c5-de9043e8e006",
    "name": "ci",
    "created_at": "2026-01-01T00:00:00Z",
    "expires_at": "2026-01-02T00:00:00Z",
    "last_used_at": None,
    "projects": ["main"],
    "services_only": True,
}


def test_tokens_are_listed_with_what_they_open(cli: Cli, server: ReplayServer) -> None:
    server.on("/api/users/tokens/list", (200, [TOKEN]))
    status, out = cli("token")
    assert status == 0
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
    assert cells[0] == ["NAME", "OPENS", "EXPIRES", "LAST USED", "CREATED"]
    assert cells[1][:4] == ["ci", "services of main", "expired", "never"]


def test_b19_a_made_token_is_printed_alone(cli: Cli, server: ReplayServer) -> None:
    server.on("/api/users/tokens/create", (200, TOKEN | {"token": "dstack_x"}))
    before = datetime.now(timezone.utc)
    assert cli("token", "create", "ci", "--expires", "30d", "--only-project", "main") == (0, "dstack_x\n")
    (asked,) = server.bodies("/api/users/tokens/create")
    expires_at = datetime.fromisoformat(asked.pop("expires_at").replace("Z", "+00:00"))
    assert timedelta(days=30) <= expires_at - before <= timedelta(days=30, minutes=5)
    assert asked == {"name": "ci", "projects": ["main"], "services_only": False}


def test_a_token_is_deleted(cli: Cli, server: ReplayServer) -> None:
    server.on("/api/users/tokens/delete", (200, None))
    assert cli("token", "delete", "ci", "-y") == (0, "Token ci is deleted.\n")
    assert server.bodies("/api/users/tokens/delete") == [{"names": ["ci"]}]
