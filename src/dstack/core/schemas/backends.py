"""`/api/project/{project_name}/backends`."""

from __future__ import annotations

from dstack.core.models import CoreModel


class CreateBackendYAMLRequest(CoreModel):
    """A new backend as YAML text."""

    config_yaml: str


class UpdateBackendYAMLRequest(CoreModel):
    """A changed backend as YAML text."""

    config_yaml: str


class DeleteBackendsRequest(CoreModel):
    """Backends by type; besides those of `BackendType` our own ones."""

    backends_names: list[str]
