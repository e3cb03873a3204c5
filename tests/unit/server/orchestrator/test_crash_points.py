"""The form of the fault injection's variable. That it kills is shown by the crash matrix."""

from __future__ import annotations

import pytest

from dstack.server.orchestrator import crash_points
from dstack.server.orchestrator.decision import Kind


def test_unset_is_nothing() -> None:
    assert crash_points.from_text(None) is crash_points.none
    assert crash_points.from_text("") is crash_points.none


@pytest.mark.parametrize("text", ["job", "job:after-effect", "job:after-effect:0", "job:after-effect:x"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected <kind>:<point>:<n>"):
        crash_points.from_text(text)


def test_other_points_and_kinds_pass() -> None:
    hit = crash_points.from_text("job:after-effect:2")
    hit(Kind.JOB, "after-effect")
    hit(Kind.RUN, "after-effect")
    hit(Kind.JOB, "before-effect")
