"""Mistakes in a YAML file, told so that they can be mended: file, line, field, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

MAX_PROBLEMS = 5
MAX_SHOWN = 60


class ConfigurationError(ValueError):
    """What is wrong with a configuration file; its text is for the user."""


def load_yaml(text: str, file: str) -> Any:
    """The data of a YAML text. Raises ConfigurationError with the line when it is not YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = str(error.problem or error.context)
        hint = "; put a text that has a colon in quotes" if problem.startswith("mapping values") else ""
        raise ConfigurationError(f"{file}{line}: this is not valid YAML: {problem}{hint}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file}: this is not valid YAML: {error}") from error


def describe_problems(
    error: ValidationError, *, text: str, file: str, known_fields: Iterable[str] = ()
) -> ConfigurationError:
    """One line for each thing that is wrong. `known_fields` helps to guess what a misspelt one was meant to be."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    details = _without_echoes(error.errors(include_url=False), root)
    lines = [_describe(item, root, file, list(known_fields)) for item in details[:MAX_PROBLEMS]]
    if len(details) > MAX_PROBLEMS:
        lines.append(f"… and {len(details) - MAX_PROBLEMS} more")
    return ConfigurationError("\n".join(dict.fromkeys(lines)))


def field_names(*models: type[BaseModel]) -> list[str]:
    """The names of all fields of the models."""
    return sorted({name for model in models for name in model.model_fields})


def _without_echoes(details: list[ErrorDetails], root: yaml.Node | None) -> list[ErrorDetails]:
    """Without what other kinds of a field would have liked, where one kind got further or says it in our words."""
    paths = [tuple(_locate(item["loc"], root)[0]) for item in details]
    kept = []
    for item, path in zip(details, paths, strict=True):
        others = [other for other, at in zip(details, paths, strict=True) if other is not item and at == path]
        is_deeper_told = any(len(at) > len(path) and at[: len(path)] == path for at in paths)
        is_echo = is_deeper_told or any(other["type"] not in _WANTED_TYPES for other in others)
        if item["type"] not in _WANTED_TYPES or not is_echo:
            kept.append(item)
    return kept


def _describe(item: ErrorDetails, root: yaml.Node | None, file: str, known_fields: list[str]) -> str:
    path, line = _locate(item["loc"], root)
    field = ".".join(path)
    return f"{file}:{line}: {_explain(item, field, known_fields)}"


def _explain(item: ErrorDetails, field: str, known_fields: list[str]) -> str:
    if item["type"] == "extra_forbidden":
        name = str(item["loc"][-1])
        close = difflib.get_close_matches(name, known_fields, n=1)
        return f"unknown field '{field}'" + (f"; did you mean '{close[0]}'?" if close else "")
    if item["type"] == "missing":
        name = str(item["loc"][-1])
        return f"the field '{field}.{name}' is missing" if field else f"the field '{name}' is missing"
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _explain_tag(item, field)
    wanted = _wanted(item)
    if wanted is not None and field:
        return f"'{field}' {wanted}"
    message = item["msg"].removeprefix("Value error, ")
    return f"'{field}': {message}" if field else message


_WANTED_TYPES = {
    "list_type": "a list",
    "dict_type": "a map",
    "model_type": "a map of fields",
    "model_attributes_type": "a map of fields",
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
_LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _wanted(item: ErrorDetails) -> str | None:
    """What would be right instead of the value, in words; None where the message says it."""
    kind, value, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind in _WANTED_TYPES:
        return f"must be {_WANTED_TYPES[kind]}, not {_shown(value)}"
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        return f"is {_shown(value)}; it must be {words} {context[key]}"
    if kind in ("enum", "literal_error"):
        return _choices(value, str(context["expected"]))
    return "is empty" if kind == "too_short" and not value else None


def _choices(value: Any, expected: str) -> str:
    names = [name.strip("'") for name in re.split(", | or ", expected)]
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"is {_shown(value)}; it must be one of {', '.join(names)}{hint}"


def _shown(value: Any) -> str:
    """The value as the file has it, as far as that is short."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return "a map" if isinstance(value, dict) else "a list"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _explain_tag(item: ErrorDetails, field: str) -> str:
    context = item.get("ctx", {})
    name = str(context.get("discriminator", "'type'")).strip("'")
    where = f"{field}.{name}" if field else name
    if item["type"] == "union_tag_not_found":
        return f"the field '{where}' is missing"
    return f"'{where}' is {context.get('tag')!r}; it must be one of {context.get('expected_tags')}"


def _locate(location: Sequence[int | str], root: yaml.Node | None) -> tuple[list[str], int]:
    """The field's path in the file, without names of union branches, and the line of it or of what holds it."""
    node, line, path = root, 1, []
    for part in location:
        child = _child(node, part)
        if child is None:
            continue
        path.append(str(part))
        line, node = child
    return path, line


def _child(node: yaml.Node | None, part: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        value = node.value[part]
        return value.start_mark.line + 1, value
    return None
