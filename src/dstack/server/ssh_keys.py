"""SSH key pairs of users, projects, the server, and the nodes of runs."""

from __future__ import annotations

from typing import NamedTuple


class KeyPair(NamedTuple):
    """In OpenSSH's formats, each ending in a line break as key files do."""

    private: str
    public: str


def generate(comment: str) -> KeyPair:
    """A new Ed25519 pair."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - only when a key is made
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - likewise

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private.decode(), f"{public.decode()} {comment}\n")
