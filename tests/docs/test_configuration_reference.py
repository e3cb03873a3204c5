"""The pages about configuration files are what the models say, and say something about every field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tools.configuration_reference import PAGES, TARGET, Model, Page, fields, meanings, nested, render

SCHEMA = json.loads((Path(__file__).parents[1] / "reference" / "configuration.schema.json").read_text())
ADDED = {
    "SSHHostParams": {"host_key"},
    "SSHProxyParams": {"host_key"},
    "ServiceConfiguration": {"balancing"},
    "GatewayConfiguration": {"ssh_config"},
    "ScalingSpec": {"effective_metric"},
}
"""Fields that only we have."""
ADDED_MODELS = {"RandomBalancing", "LeastRequestsBalancing", "PrefixBalancing", "SessionBalancing"}
MODELS = list(dict.fromkeys(model for page in PAGES for model in [*page.models, *nested(page.models)]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_is_fresh(page: Page) -> None:
    told = (TARGET / f"{page.name}.md").read_text(encoding="utf-8")
    assert told == render(page), "run `python -m tools.configuration_reference`"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_explained(model: Model) -> None:
    explained = meanings(model)
    assert [name for name in fields(model) if not explained.get(name)] == []


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_fields_are_those_of_the_reference(model: Model) -> None:
    definitions: dict[str, Any] = SCHEMA["$defs"]
    if model.__name__ not in definitions:
        assert model.__name__ in {"Profile", "ProfilesConfig"} | ADDED_MODELS
        return
    ours = ADDED.get(model.__name__, set())
    assert set(model.model_fields) - ours == set(definitions[model.__name__]["properties"])
