"""Writes docs/reference/configuration/*.md from the models: `python -m tools.configuration_reference`.

A field's meaning is the text under it in the source, its type what the source says, in the words of the files.
"""

from __future__ import annotations

import ast
import enum
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dstack.core.configurations import fleet, gateway, preset, profiles, service, task, volume
from dstack.core.configurations.dev_environment import DevEnvironmentConfiguration
from dstack.core.resources import Range

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "configuration"
Model = type[BaseModel]


@dataclass(frozen=True)
class Page:
    """One page: what it is about, and the models that a file of this kind may be."""

    name: str
    title: str
    text: str
    models: tuple[Model, ...]


PAGES = (
    Page(
        "task",
        "Tasks",
        "`type: task`: commands that run to their end, on one node or several.",
        (task.TaskConfiguration,),
    ),
    Page(
        "service",
        "Services",
        "`type: service`: published under a URL, in one replica or several.",
        (service.ServiceConfiguration,),
    ),
    Page(
        "dev-environment",
        "Dev environments",
        "`type: dev-environment`: a machine to work on from an IDE or a terminal.",
        (DevEnvironmentConfiguration,),
    ),
    Page(
        "fleet",
        "Fleets",
        "`type: fleet`: instances of a cloud, or hosts that are there already.",
        (fleet.FleetConfiguration,),
    ),
    Page(
        "volume",
        "Volumes",
        "`type: volume`: a disk that outlives the instances it is attached to. Its fields depend on the backend.",
        (
            volume.AWSVolumeConfiguration,
            volume.GCPVolumeConfiguration,
            volume.RunpodVolumeConfiguration,
            volume.KubernetesVolumeConfiguration,
            volume.DaytonaVolumeConfiguration,
            volume.LiumVolumeConfiguration,
        ),
    ),
    Page(
        "gateway",
        "Gateways",
        "`type: gateway`: publishes services under domain names of your own.",
        (gateway.GatewayConfiguration,),
    ),
    Page(
        "preset",
        "Presets",
        "`type: preset`: a model, for which a coding agent finds a good way to serve it; see "
        "[presets](../../guides/presets.md).",
        (preset.PresetConfiguration,),
    ),
    Page(
        "profiles",
        "Profiles",
        "`.dstack/profiles.yml`, beside the configuration or in the home folder: named sets of parameters.",
        (profiles.ProfilesConfig,),
    ),
)
WORDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "`true`, `false`",
    "Any": "anything",
    "Duration": "duration",
    "DurationLimit": "duration, `off`",
    "IdleDuration": "duration, `off`",
    "InactivityDuration": "duration, `off`",
    "Env": "map or list of variables",
    "Tags": "map of texts",
    "Memory": "size",
    "AbsolutePath": "absolute path",
    "Port": "port",
    "GroupName": "text",
    "Text": "text",
    "Provider": "`claude`, `codex`",
    "ReplicaRange": "whole number or range",
}
"""Types that have names of their own in the source."""


def render(page: Page) -> str:
    """The whole page."""
    parts = [f"# {page.title}\n\n{HEAD}\n{page.text}\n"]
    for model in page.models:
        title = f"## {model.__name__}\n\n" if len(page.models) > 1 else "## Fields\n\n"
        parts.append(title + (f"{document(model)}\n\n" if len(page.models) > 1 else "") + table(model))
    parts += [f"## {model.__name__}\n\n{document(model)}\n\n{table(model)}" for model in nested(page.models)]
    return "\n".join(parts) + FOOT


HEAD = "*Generated from the models by `python -m tools.configuration_reference`.*\n"
FOOT = """
Durations are whole seconds or texts such as `90s`, `2h`, `1h30m`; sizes are gigabytes or texts such as `512MB`,
`16GB`, `1TB`; ranges are `4`, `2..8`, `2..` or `..8`.
"""


def nested(models: tuple[Model, ...]) -> list[Model]:
    """The models that stand within these, each once, in the order in which they are met."""
    found: dict[Model, None] = {}
    waiting = list(models)
    while waiting:
        model = waiting.pop(0)
        for name in fields(model):
            for other in Types(model, name).models():
                if other not in found and other not in models:
                    found[other] = None
                    waiting.append(other)
    return list(found)


def fields(model: Model) -> dict[str, FieldInfo]:
    """Those that a file may have."""
    return {name: field for name, field in model.model_fields.items() if not field.exclude}


def table(model: Model) -> str:
    rows = [_row(model, name, field) for name, field in fields(model).items()]
    return "\n".join(["| Field | Type | Default | Meaning |", "|---|---|---|---|", *rows]) + "\n"


def _row(model: Model, name: str, field: FieldInfo) -> str:
    meaning = meanings(model).get(name, "").replace("|", chr(92) + "|")
    kind = Types(model, name).text()
    return f"| `{name}` | {kind} | {_default(field)} | {meaning} |".replace(" |  |", " | |")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ([], {}, ""):
        return ""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, BaseModel):
        text = str(value)
        return "" if "=" in text else f"`{text}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


@cache
def meanings(model: Model) -> dict[str, str]:
    """What the source says under each field, of the model and of those it is made of."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not (isinstance(owner, type) and issubclass(owner, BaseModel)) or owner is BaseModel:
            continue
        for name, _, text in _declarations(owner):
            if text:
                found[name] = text
            elif name == "type":
                found.pop(name, None)
    return found | ({"type": "Which kind this is."} if "type" in model.model_fields else {})


def document(model: Model) -> str:
    return " ".join((model.__doc__ or "").split())


@cache
def _declarations(owner: Model) -> list[tuple[str, ast.expr, str]]:
    """Name, annotation and text of each field that the class itself declares."""
    [node] = ast.parse(inspect.getsource(owner)).body
    assert isinstance(node, ast.ClassDef)
    following = [*node.body[1:], None]
    return [
        (part.target.id, part.annotation, _text(after))
        for part, after in zip(node.body, following, strict=True)
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    ]


def _text(node: ast.stmt | None) -> str:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return " ".join(str(node.value.value).split()) if is_text else ""  # type: ignore[union-attr]


class Types:
    """The type of a field in words, from its annotation in the source."""

    def __init__(self, model: Model, name: str) -> None:
        for owner in model.__mro__:
            declared = _declarations(owner) if issubclass(owner, BaseModel) and owner is not BaseModel else []
            for field, annotation, _ in declared:
                if field == name:
                    self._annotation, self._module = annotation, sys.modules[owner.__module__]
                    return
        raise LookupError(f"{model.__name__} does not declare {name}")

    def text(self) -> str:
        return " or ".join(dict.fromkeys(self._words(self._annotation, self._module)))

    def models(self) -> list[Model]:
        """Those that the type names."""
        meant = self._meant(self._annotation, self._module)
        return [found for found in meant if issubclass(found, BaseModel) and found is not Range]

    def _words(self, node: ast.expr, module: ModuleType) -> Iterator[str]:
        match node:
            case ast.BinOp(left=left, right=right):
                yield from self._words(left, module)
                yield from self._words(right, module)
            case ast.Constant(value=None):
                return
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *_])):
                yield from self._words(inner, module)
            case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
                values = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                yield ", ".join(f"`{ast.literal_eval(value)}`" for value in values)
            case ast.Subscript(value=ast.Name(id="list"), slice=inner):
                yield "list of " + " or ".join(self._words(inner, module))
            case ast.Subscript(value=ast.Name(id="dict" | "tuple")):
                yield "text"
            case ast.Subscript(value=ast.Name(id="Range"), slice=inner):
                yield "range of " + " or ".join(f"{word}s" for word in self._words(inner, module))
            case ast.Name(id=name):
                yield from self._named(name, module)
            case _:
                raise ValueError(f"{module.__name__}: no words for {ast.unparse(node)}")

    def _named(self, name: str, module: ModuleType) -> Iterator[str]:
        meant = vars(module).get(name)
        if name in WORDS:
            yield WORDS[name]
        elif isinstance(meant, type) and issubclass(meant, enum.Enum):
            yield ", ".join(f"`{one.value}`" for one in meant)
        elif isinstance(meant, type) and issubclass(meant, BaseModel):
            yield f"[{name}](#{name.lower()})"
        else:
            yield from self._words(*_alias(name, module))

    def _meant(self, node: ast.expr, module: ModuleType) -> Iterator[type[Any]]:
        for part in ast.walk(node):
            if not isinstance(part, ast.Name):
                continue
            meant = vars(module).get(part.id)
            if isinstance(meant, type):
                yield meant
            elif meant is not None and part.id not in WORDS and not inspect.isroutine(meant) and _is_alias(meant):
                yield from self._meant(*_alias(part.id, module))


def _is_alias(meant: Any) -> bool:
    """Whether it is a type made of others, not one of typing's own words."""
    return get_origin(meant) is not None


@cache
def _alias(name: str, module: ModuleType) -> tuple[ast.expr, ModuleType]:
    """The type that `name = …` stands for, and where."""
    tree = ast.parse(inspect.getsource(module))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return node.value, module
        if isinstance(node, ast.ImportFrom) and any(one.name == name for one in node.names):
            return _alias(name, sys.modules[str(node.module)])
    raise LookupError(f"{module.__name__} has no {name}")


def main() -> int:
    """Writes the pages, or says whether they are fresh."""
    stale = [page.name for page in PAGES if _current(page) != render(page)]
    if "--check" in sys.argv:
        return 1 if stale else 0
    TARGET.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        (TARGET / f"{page.name}.md").write_text(render(page), encoding="utf-8")
    return 0


def _current(page: Page) -> str:
    path = TARGET / f"{page.name}.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
