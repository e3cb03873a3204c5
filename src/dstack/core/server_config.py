"""The server's file `~/.dstack/server/config.yml`: projects and their backends, encryption keys, permissions."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from dstack.core.backends import LOCAL, BackendType
from dstack.core.models import CoreModel
from dstack.core.names import check_project_name

OWN_BACKENDS = (LOCAL, "fake")
"""Backends that only we have."""
REMOTE_BACKENDS = (*OWN_BACKENDS, "ssh")
"""What is `remote` in the REST API: those, and the hosts of SSH fleets, which are configured with their fleet."""
CONFIGURABLE_BACKENDS = (
    *OWN_BACKENDS,
    *(kind.value for kind in BackendType if kind not in (BackendType.DSTACK, BackendType.REMOTE)),
)


def _check_backend(name: str) -> str:
    if name not in CONFIGURABLE_BACKENDS:
        raise ValueError(f"{name!r} is not a backend: choose one of {', '.join(sorted(CONFIGURABLE_BACKENDS))}")
    return name


class BackendFileConfig(CoreModel):
    """A backend of a project. What it needs besides its type, credentials included, is checked by the backend."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, AfterValidator(_check_backend)]

    def settings(self) -> dict[str, Any]:
        """The keys besides `type`."""
        return dict(self.model_extra or {})


def _check_name(name: str) -> str:
    check_project_name(name)
    return name


class ProjectConfig(CoreModel):
    """A project; without `backends` those that it has stay as they are."""

    name: Annotated[str, AfterValidator(_check_name)]
    backends: list[BackendFileConfig] | None = None


AES_KEY_BYTES = (16, 24, 32)


def _check_secret(secret: str) -> str:
    try:
        key = base64.b64decode(secret, validate=True)
    except binascii.Error as error:
        raise ValueError(
            "the 'secret' of an AES key is Base64 text; make one with: head -c 32 /dev/urandom | base64"
        ) from error
    if len(key) not in AES_KEY_BYTES:
        raise ValueError(f"the 'secret' of an AES key has 16, 24 or 32 bytes, not {len(key)}")
    return secret


class AESEncryptionKeyConfig(CoreModel):
    """AES-GCM with the given key."""

    type: Literal["aes"] = "aes"
    name: str
    secret: Annotated[str, AfterValidator(_check_secret)] = Field(repr=False)


class IdentityEncryptionKeyConfig(CoreModel):
    """No encryption."""

    type: Literal["identity"] = "identity"


EncryptionKeyConfig = Annotated[AESEncryptionKeyConfig | IdentityEncryptionKeyConfig, Field(discriminator="type")]


class EncryptionConfig(CoreModel):
    """The first key encrypts, all of them decrypt."""

    keys: list[EncryptionKeyConfig]


class DefaultPermissions(CoreModel):
    """What people may do unless their project says otherwise."""

    allow_non_admins_create_projects: bool = True
    allow_non_admins_manage_ssh_fleets: bool = True
    allow_managers_manage_secrets: bool = False


class ServerConfig(CoreModel):
    """The whole file."""

    projects: list[ProjectConfig] = Field(default_factory=list)
    encryption: EncryptionConfig | None = None
    default_permissions: DefaultPermissions | None = None
    plugins: list[str] | None = None
