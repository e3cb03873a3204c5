"""The one JSON text of a model: what is stored is what is answered."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel


def dump_json(model: BaseModel) -> str:
    """The JSON text of a model: every field in its declared order, times in UTC with `Z`."""
    return model.model_dump_json()


def dump_json_list(models: Iterable[BaseModel]) -> str:
    """The JSON text of a list of models."""
    return f"[{','.join(model.model_dump_json() for model in models)}]"
