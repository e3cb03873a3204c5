"""The reference of environment variables says what the registry says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstack.server.settings import SETTINGS, Setting

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "environment-variables.md"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.env)
def test_every_setting_is_documented(setting: Setting) -> None:
    page = PAGE.read_text()
    assert f"### `{setting.env}`\n\nDefault: {setting.default}\n\n{setting.help}\n" in page


def test_no_setting_is_documented_that_does_not_exist() -> None:
    server_part = PAGE.read_text().split("## Server\n", 1)[1].split("\n## ", 1)[0]
    headings = {line[5:-1] for line in server_part.splitlines() if line.startswith("### `")}
    assert headings == {setting.env for setting in SETTINGS}
