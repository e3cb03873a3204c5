"""`/api/project/{project_name}/secrets`."""

from __future__ import annotations

from dstack.core.models import CoreModel


class GetSecretRequest(CoreModel):
    """A secret by name."""

    name: str


class CreateOrUpdateSecretRequest(CoreModel):
    """A secret and its value."""

    name: str
    value: str


class DeleteSecretsRequest(CoreModel):
    """Secrets by name."""

    secrets_names: list[str]
