"""Version negotiation (wire, section 2)."""

from __future__ import annotations

import pytest

from dstack.server.api.versions import OUR_LEVEL, BadVersion, Version, parse


@pytest.mark.parametrize("text", ["latest", "0.0.0", "0.0.0.dev0", "0.0.0dev1"])
def test_development_versions_get_the_newest_shapes(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.22.5", Version(0, 22, 5)),
        ("0.22", Version(0, 22, 0)),
        ("0.23.0rc1", Version(0, 23, 0)),
        ("0.22.5.post1", Version(0, 22, 5)),
        ("v1.2.3+local.1", Version(1, 2, 3)),
    ],
)
def test_release_numbers_are_read(text: str, version: Version) -> None:
    assert parse(text) == version


@pytest.mark.parametrize("text", ["", "abc", "0.22.x", "1..2", "0.22.5 or so"])
def test_what_is_not_a_version_is_refused(text: str) -> None:
    with pytest.raises(BadVersion):
        parse(text)


def test_our_level() -> None:
    assert str(OUR_LEVEL) == "0.22.5"
