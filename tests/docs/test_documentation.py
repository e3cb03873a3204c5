"""The documentation is held to the code: settings, links, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dstack.server.settings import SETTINGS, Setting

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.env)
def test_every_setting_is_documented(setting: Setting) -> None:
    page = (ROOT / "docs/reference/environment-variables.md").read_text()
    assert f"`{setting.env}`" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            anchors = {slug(heading) for heading in HEADING.findall(linked.read_text())}
            assert anchor in anchors, f"{page.name} links to {target}, a heading that does not exist"


def test_the_make_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z0-9-]+)", page.read_text()):
            assert target in targets, f"{page.name} names make {target}, which the Makefile does not have"


def test_every_page_of_the_decisions_has_its_parts() -> None:
    for page in (ROOT / "docs/adr").glob("*.md"):
        text = page.read_text()
        for part in ("Status:", "Area:", "## Context", "## Decision", "## Consequences", "## Alternatives"):
            assert part in text, f"{page.name} has no {part}"


def test_the_requirements_name_no_index() -> None:
    for locked in (ROOT / "requirements").glob("*.txt"):
        text = locked.read_text()
        assert "://" not in text
        assert "--index-url" not in text
