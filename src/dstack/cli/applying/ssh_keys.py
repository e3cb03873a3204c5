"""The private keys by which the server reaches hosts: read here and sent with the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dstack.cli.errors import CliError
from dstack.core.configurations.fleet import SSHHostParams, SSHParams
from dstack.core.ssh import SSHKey, SSHProxyParams


def read_keys(ssh: SSHParams, identity: str | None) -> None:
    """Puts the keys of the files that `ssh` names into it. `identity`: the file that a flag names."""
    ssh.identity_file = identity or ssh.identity_file
    entries: list[Any] = [ssh, *(host for host in ssh.hosts if isinstance(host, SSHHostParams))]
    proxies: list[SSHProxyParams] = [entry.proxy_jump for entry in entries if entry.proxy_jump is not None]
    for entry in [*entries, *proxies]:
        if entry.identity_file is not None:
            entry.ssh_key = _read_key(entry.identity_file)
    if ssh.ssh_key is None and any(isinstance(host, str) or host.ssh_key is None for host in ssh.hosts):
        raise CliError(
            "There is no key for some hosts: set 'identity_file' in 'ssh_config' or pass --ssh-identity"
        )


def _read_key(identity: str) -> SSHKey:
    path = Path(identity).expanduser()
    try:
        private = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"The private key {path} cannot be read: {error}") from error
    public = path.with_name(f"{path.name}.pub")
    return SSHKey(public=public.read_text(encoding="utf-8") if public.exists() else "", private=private)
