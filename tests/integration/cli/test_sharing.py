"""`export` and `import`."""

from __future__ import annotations

import pytest
from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import ReplayServer, recorded

EXPORTS = "/api/project/main/exports"
IMPORTS = "/api/project/main/imports"
EXPORT = {
    "id": "1",
    "name": "gpus",
    "is_global": False,
    "imports": [{"project_name": "team"}, {"project_name": "lab"}],
    "exported_fleets": [{"id": "2", "name": "f1"}],
    "exported_gateways": [],
}


@pytest.mark.parametrize("answer", [[EXPORT], {"exports": [EXPORT], "warnings": []}])
def test_exports_as_a_table(cli: Cli, server: ReplayServer, answer: object) -> None:
    server.on(f"{EXPORTS}/list", (200, answer))
    status, out = cli("export")
    assert (status, [line.split() for line in out.splitlines()]) == (
        0,
        [["NAME", "FLEETS", "GATEWAYS", "IMPORTERS"], ["gpus", "f1", "team,", "lab"]],
    )


def test_a_server_without_exports_says_so(cli: Cli, server: ReplayServer) -> None:
    server.replay("39")
    assert cli("export") == (1, recorded("39")[1]["detail"][0]["msg"] + "\n")


def test_creating_changing_and_deleting(cli: Cli, server: ReplayServer) -> None:
    server.on(f"{EXPORTS}/create", (200, {**EXPORT, "is_global": True}))
    server.on(f"{EXPORTS}/update", (200, EXPORT))
    server.on(f"{EXPORTS}/delete", (200, None))
    status, out = cli(
        "export", "create", "gpus", "--fleet", "f1", "--fleet", "f2", "--importer", "team", "--global"
    )
    assert (status, out.splitlines()[1].split()) == (0, ["gpus", "f1", "*"])
    assert server.bodies(f"{EXPORTS}/create") == [
        {
            "name": "gpus",
            "is_global": True,
            "importer_projects": ["team"],
            "exported_fleets": ["f1", "f2"],
            "exported_gateways": [],
        }
    ]
    assert (
        cli("export", "update", "gpus", "--add-importer", "lab", "--remove-fleet", "f2", "--unset-global")[0] == 0
    )
    sent = server.bodies(f"{EXPORTS}/update")[0]
    assert {key: value for key, value in sent.items() if value} == {
        "name": "gpus",
        "unset_global": True,
        "add_importer_projects": ["lab"],
        "remove_exported_fleets": ["f2"],
    }
    assert cli("export", "update", "gpus")[0] == 1
    assert cli("export", "update", "gpus", "--set-global", "--unset-global")[0] == 2
    assert cli("export", "delete", "gpus", stdin="n\n")[0] == 0
    assert server.bodies(f"{EXPORTS}/delete") == []
    assert cli("export", "delete", "gpus", "-y") == (0, "Deleted the export gpus.\n")


def test_imports(cli: Cli, server: ReplayServer) -> None:
    export = {"id": "1", "name": "gpus", "project_name": "team", "exported_fleets": [{"id": "2", "name": "f1"}]}
    server.on(f"{IMPORTS}/list", (200, {"imports": [{"id": "3", "export": export}]}))
    server.on(f"{IMPORTS}/delete", (200, None))
    status, out = cli("import", "list")
    assert (status, [line.split() for line in out.splitlines()]) == (
        0,
        [["NAME", "FLEETS", "GATEWAYS"], ["team/gpus", "f1"]],
    )
    assert cli("import", "delete", "team/gpus", "-y") == (0, "Deleted the import team/gpus.\n")
    assert server.bodies(f"{IMPORTS}/delete") == [{"export_name": "gpus", "export_project_name": "team"}]
    status, out = cli("import", "delete", "gpus", "-y")
    assert (status, "as in team/shared" in out) == (1, True)
