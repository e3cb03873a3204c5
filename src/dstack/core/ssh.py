"""SSH keys and addresses as configurations and the REST API carry them."""

from dstack.core.models import CoreModel


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
