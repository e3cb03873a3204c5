"""Templates from which the web UI makes run configurations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dstack.core.models import CoreModel


class NameUITemplateParameter(CoreModel):
    """Asks for the run's name."""

    type: Literal["name"]


class IDEUITemplateParameter(CoreModel):
    """Asks for the IDE."""

    type: Literal["ide"]


class ResourcesUITemplateParameter(CoreModel):
    """Asks for the resources."""

    type: Literal["resources"]


class PythonOrDockerUITemplateParameter(CoreModel):
    """Asks for a Python version or an image."""

    type: Literal["python_or_docker"]


class RepoUITemplateParameter(CoreModel):
    """Asks for a repository."""

    type: Literal["repo"]


class WorkingDirUITemplateParameter(CoreModel):
    """Asks for the working directory."""

    type: Literal["working_dir"]


class EnvUITemplateParameter(CoreModel):
    """Asks for the value of an environment variable."""

    type: Literal["env"]
    title: str | None = None
    name: str | None = None
    value: str | None = None


UITemplateParameter = Annotated[
    NameUITemplateParameter
    | IDEUITemplateParameter
    | ResourcesUITemplateParameter
    | PythonOrDockerUITemplateParameter
    | RepoUITemplateParameter
    | WorkingDirUITemplateParameter
    | EnvUITemplateParameter,
    Field(discriminator="type"),
]


class UITemplate(CoreModel):
    """A configuration with gaps, and what to ask for to fill them."""

    type: Literal["template"]
    name: str
    title: str
    description: str | None = None
    parameters: list[UITemplateParameter] = Field(default_factory=list)
    configuration: dict[str, Any]
