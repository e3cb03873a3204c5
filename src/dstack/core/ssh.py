"""SSH keys and addresses as configurations and the REST API carry them."""

from dstack.core.models import CoreModel


class SSHKey(CoreModel):
    """A key pair; the private half is absent wherever it is only shown."""

    public: str
    private: str | None = None


class SSHConnectionParams(CoreModel):
    """Where and as whom to connect."""

    hostname: str
    username: str
    port: int


class SSHProxyParams(CoreModel):
    """A host to go through."""

    hostname: str
    port: int | None = None
    user: str
    identity_file: str
    ssh_key: SSHKey | None = None
