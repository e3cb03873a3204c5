"""SSH keys and addresses as configurations and the REST API carry them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, SerializerFunctionWrapHandler, model_serializer

from dstack.core.models import CoreModel

JOB_SSH_PORT = 10022
"""Behind the SSH door: a job's own SSH server. It is the door once more, with a user of the job as user name."""


def _check_host_key(text: str) -> str:
    words = text.split()
    if len(words) >= 3 and not words[0].startswith(("ssh-", "ecdsa-", "sk-")):
        words = words[1:]  # a line of known_hosts begins with the host's name
    if len(words) < 2 or not words[0].startswith(("ssh-", "ecdsa-", "sk-")):
        raise ValueError(f"{text!r} is not a public host key, such as 'ssh-ed25519 AAAA…'")
    return " ".join(words[:2])


HostKey = Annotated[str, AfterValidator(_check_host_key)]
"""A host's public key, without a comment."""


class SSHKey(CoreModel):
    """A key pair; the private half is absent wherever it is only shown."""

    public: str
    """As in `authorized_keys`."""
    private: str | None = None
    """In PEM or OpenSSH format."""


class SSHConnectionParams(CoreModel):
    """Where and as whom to connect."""

    hostname: str
    username: str
    port: int


class SSHProxyParams(CoreModel):
    """A host to go through."""

    hostname: str
    """Name or address."""
    port: int | None = None
    """By default 22."""
    user: str
    """As whom to log in."""
    identity_file: str
    """Private key on the machine of `dstack apply`."""
    ssh_key: SSHKey | None = None
    """The key itself."""
    host_key: HostKey | None = None
    """The host's public key, as `ssh-keyscan` prints it; without, the one it shows at first is pinned."""

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset_host_key(handler(self))


def without_unset_host_key(dumped: dict[str, Any]) -> dict[str, Any]:
    """Servers that do not know `host_key` refuse it: it is sent only when it is set."""
    if dumped.get("host_key") is None:
        dumped.pop("host_key", None)
    return dumped
