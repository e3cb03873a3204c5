"""Our own lint rules catch what they are for, and nothing else."""

from __future__ import annotations

import pytest
from tools.lint.rules import check_source

STATUS = "from dstack.server.db.tables import JobRow\n"


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("dstack.server.operations.runs", STATUS + "row.status = 'done'", True),
        ("dstack.server.operations.runs", STATUS + "update(JobRow).values(status='done')", True),
        ("dstack.server.orchestrator.engine", STATUS + "row.status = 'done'", False),
        ("dstack.server.operations.runs", STATUS + "row.stop_requested = 'stopped_by_user'", False),
        ("dstack.server.operations.runs", "response.status = 200", False),
        (
            "dstack.server.operations.runs",
            STATUS + "row.status = 'x'  # lint: allow only-the-engine-writes-a-status (first row)",
            False,
        ),
    ],
)
def test_rules(module: str, source: str, broken: bool) -> None:
    assert bool(check_source(source, module)) is broken
