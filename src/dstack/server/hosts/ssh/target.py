"""Where an SSH host is and how to log in there, as it stands in an instance's row."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

DEFAULT_PORT = 22


@dataclass(frozen=True)
class SSHTarget:
    """`jump`: the host to go through. `host_key`: the pinned key (`ssh-ed25519 AAAA…`); None at first contact."""

    hostname: str
    username: str
    port: int = DEFAULT_PORT
    private_keys: tuple[str, ...] = field(default=(), repr=False)
    host_key: str | None = None
    jump: SSHTarget | None = None

    def __str__(self) -> str:
        where = f"{self.username}@{self.hostname}"
        return where if self.port == DEFAULT_PORT else f"{where}:{self.port}"

    def dump(self) -> str:
        """JSON with the private keys: only ever stored encrypted."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def load(cls, text: str) -> SSHTarget:
        """The reverse of `dump`."""
        return _load(json.loads(text))


def _load(data: dict[str, Any]) -> SSHTarget:
    jump = data.pop("jump", None)
    data["private_keys"] = tuple(data["private_keys"])
    return SSHTarget(**data, jump=None if jump is None else _load(jump))
