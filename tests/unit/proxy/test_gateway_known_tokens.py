"""How long a token is in a place where nginx finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstack.proxy.gateway.known_tokens import FRESH, KNOWN, SLOT_S, KnownTokens

NAME = "main@Bearer token"


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def seconds_found(folder: Path, kind: str, since: float) -> list[int]:
    """Those after `since` in which nginx would find the token."""
    return [after for after in range(120) if (folder / kind / str(int((since + after) // SLOT_S)) / NAME).exists()]


@pytest.mark.parametrize("offset", [0, 3, 9])
def test_a_token_is_fresh_for_20_s_and_known_for_no_more_than_60(tmp_path: Path, offset: int) -> None:
    clock = Clock()
    clock.now += offset
    KnownTokens(tmp_path, clock).remember("main", "Bearer token", clock.now)
    assert seconds_found(tmp_path, FRESH, clock.now) == list(range(30 - offset))
    assert seconds_found(tmp_path, KNOWN, clock.now) == list(range(60 - offset))


def test_a_revoked_token_is_in_no_slot(tmp_path: Path) -> None:
    clock = Clock()
    tokens = KnownTokens(tmp_path, clock)
    for _ in range(4):
        tokens.remember("main", "Bearer token", clock.now)
        tokens.remember("main", "Bearer other", clock.now)
        clock.now += 15
    tokens.forget("main", "Bearer token")
    assert not list(tmp_path.rglob(NAME))
    assert list(tmp_path.rglob("main@Bearer other"))


def test_slots_that_are_over_are_removed(tmp_path: Path) -> None:
    clock = Clock()
    tokens = KnownTokens(tmp_path, clock)
    tokens.remember("main", "Bearer token", clock.now)
    clock.now += 25
    tokens.clean()
    assert len(list(tmp_path.rglob(NAME))) == 1 + 4
    clock.now += 35
    tokens.clean()
    assert not list(tmp_path.rglob(NAME))


@pytest.mark.parametrize("value", ["", "Bearer a/../../b", "../x", "Bearer \n", "Bearer é", "x" * 151])
def test_what_cannot_be_the_name_of_a_file_is_not_put_down(tmp_path: Path, value: str) -> None:
    tokens = KnownTokens(tmp_path / "tokens")
    tokens.remember("main", value, 1_800_000_000)
    tokens.forget("main", value)
    assert not (tmp_path / "tokens").exists()
