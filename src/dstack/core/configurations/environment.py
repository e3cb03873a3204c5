"""Environment variables of a run."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from dstack.core.models import CoreModel

_ITEM = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)(?:=(.*))?", re.DOTALL)


class EnvSentinel(CoreModel):
    """Stands for the value that a variable has where `dstack apply` runs; the CLI fills it in."""

    key: str

    def __str__(self) -> str:
        return f"the variable {self.key} of your environment"


def _parse_list(items: Any) -> Any:
    if not isinstance(items, list):
        return items
    variables: dict[str, Any] = {}
    for item in items:
        match = _ITEM.fullmatch(item) if isinstance(item, str) else None
        if match is None:
            raise PydanticCustomError(
                "string_pattern_mismatch",
                "{item} is not a variable: write 'NAME=value' or 'NAME'",
                {"item": repr(item)},
            )
        name, value = match.groups()
        if name in variables:
            raise ValueError(f"the variable {name} is given twice")
        variables[name] = {"key": name} if value is None else value
    return variables


Env = Annotated[dict[str, str | EnvSentinel], BeforeValidator(_parse_list)]
"""Names and values; a list of `NAME=value` and `NAME` (taken from where `dstack apply` runs) is accepted too."""
