"""Recorded answers are read and written back to the last byte."""

import json
from pathlib import Path

import pytest

from dstack.core.canonical import dump_json
from dstack.core.fleets import Fleet, FleetPlan
from dstack.core.models import CoreModel
from dstack.core.runs import Run, RunPlan

CAPTURES = Path(__file__).parents[2] / "reference" / "captures"
MODELS: dict[str, type[CoreModel]] = {
    "/runs/get_plan": RunPlan,
    "/runs/apply": Run,
    "/runs/get": Run,
    "/fleets/get_plan": FleetPlan,
    "/fleets/apply": Fleet,
}


def answers() -> list[tuple[str, type[CoreModel], object]]:
    found = []
    for path in sorted(CAPTURES.glob("*.json")):
        capture = json.loads(path.read_text())
        answer = capture.get("response", {})
        model = next((m for end, m in MODELS.items() if capture["request"]["path"].endswith(end)), None)
        if model is not None and answer.get("status") == 200:
            found.append((path.stem, model, answer["body"]))
    return found


@pytest.mark.parametrize(("name", "model", "body"), answers(), ids=[answer[0] for answer in answers()])
def test_answer_is_written_back_as_it_was(name: str, model: type[CoreModel], body: object) -> None:
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    assert dump_json(model.model_validate_json(text)) == text
