"""Named tokens: their form."""

from __future__ import annotations

import pytest

from dstack.core import tokens


def test_b19_scanners_know_a_token_by_its_prefix_and_checksum() -> None:
    token = tokens.generate()
    assert token.startswith("dstack_")
    assert len(token) == len("dstack_") + 36
    assert not tokens.is_mistyped(token)
    assert len({tokens.generate() for _ in range(100)}) == 100


@pytest.mark.parametrize("change", ["swapped", "cut", "longer", "prefix only"])
def test_b19_a_mistyped_token_is_known_without_looking_it_up(change: str) -> None:
    token = tokens.generate()
    wrong = {
        "swapped": token[:10] + ("a" if token[10] != "a" else "b") + token[11:],
        "cut": token[:-1],
        "longer": token + "0",
        "prefix only": "dstack_",
    }[change]
    assert tokens.is_mistyped(wrong)


def test_other_tokens_are_not_ours_to_judge() -> None:
    assert not tokens.is_mistyped("00000000-0000-4000-8000-000000000001")
