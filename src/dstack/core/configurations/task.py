"""Tasks: run to completion, on one node or many."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from typing_extensions import Self

from dstack.core.configurations.ports import PortMapping
from dstack.core.configurations.profiles import ProfileParams
from dstack.core.configurations.runs import GroupName, RunConfiguration, check_group_names, number_groups
from dstack.core.models import CoreModel
from dstack.core.resources import ResourcesSpec


class NodeGroup(CoreModel):
    """Nodes of a distributed task that are alike."""

    name: GroupName | None = None
    """By default the group's number."""
    nodes: int = Field(default=1, ge=1)
    """How many nodes are like this."""
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    """What each of them needs."""
    commands: list[str] = Field(default_factory=list)
    """What they run; they may name any node's address: `${{ groups[0].nodes[0].IP_ADDRESS }}`."""
    ports: list[PortMapping] = Field(default_factory=list)
    """Ports they listen on."""


class TaskParams(CoreModel):
    """The fields that only a task has."""

    nodes: Annotated[int, Field(ge=1)] | None = None
    """How many nodes run the commands at the same time; 1 by default."""
    groups: Annotated[list[NodeGroup] | None, BeforeValidator(number_groups)] = None
    """Kinds of nodes, in place of `nodes`, `commands` and `ports`."""
    ports: list[PortMapping] = Field(default_factory=list)
    """Ports that the job listens on; `dstack apply` and `dstack attach` forward them."""
    commands: list[str] = Field(default_factory=list)
    """What runs, one after another until one fails. `${{ run.args }}` stands for the arguments after `--`."""

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, groups: list[NodeGroup] | None) -> list[NodeGroup] | None:
        if groups is not None:
            check_group_names([group.name for group in groups])
        return groups


class TaskConfiguration(ProfileParams, RunConfiguration, TaskParams):
    """`type: task`."""

    type: Literal["task"] = "task"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.groups is None:
            if not self.commands and self.image is None:
                raise ValueError("a task needs 'commands', or an 'image' that has its own")
            return self
        for field in ("nodes", "commands", "ports"):
            if getattr(self, field):
                raise ValueError(f"'{field}' cannot be used together with 'groups': give it in each group")
        if self.image is None and not all(group.commands for group in self.groups):
            raise ValueError("each group needs 'commands', unless the task has an 'image' that has its own")
        return self
