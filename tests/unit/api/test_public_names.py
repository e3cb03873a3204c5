"""What `dstack.api` promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dstack.api


def test_the_names() -> None:
    assert sorted(dstack.api.__all__) == sorted(dstack.api._PLACES)
    assert [name for name in dstack.api.__all__ if getattr(dstack.api, name) is None] == []
    assert dir(dstack.api) == sorted(dstack.api.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nope'"):
        dstack.api.__getattr__("Nope")


def test_they_are_loaded_when_they_are_used() -> None:
    code = "import sys, dstack.api; dstack.api.RestClient; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
