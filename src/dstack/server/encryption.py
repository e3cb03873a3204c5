"""Secrets at rest: what is stored encrypted, with which key, and bound to where it belongs.

Stored text is `enc:<type>:<key name>:<body>`; the names are percent-encoded. The first key encrypts, all decrypt,
so a key is rotated by putting a new one first. With `aes` (AES-256-GCM) the context ``"table.column:<row id>"`` is
authenticated with the text: a ciphertext copied to another row or column does not decrypt.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dstack.core.errors import DstackError

NONCE_BYTES = 12
KEY_BYTES = 32
MADE_KEY_NAME = "server"


class EncryptionError(DstackError):
    """A key is unusable, or a stored secret cannot be read with the keys there are."""


class Secret(str):
    """Text that does not show itself in logs, tracebacks or debuggers."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(***)"


class EncryptionKey(Protocol):
    """One way to encrypt. `type` and `name` find it again when something is read."""

    type: str
    name: str

    def encrypt(self, text: str, context: str) -> str: ...

    def decrypt(self, body: str, context: str) -> str: ...


class IdentityKey:
    """Stores the text as it is (base64): for those who encrypt the disk or the database instead."""

    type = "identity"
    name = ""

    def encrypt(self, text: str, context: str) -> str:
        return base64.b64encode(text.encode()).decode()

    def decrypt(self, body: str, context: str) -> str:
        return base64.b64decode(body, validate=True).decode()


class AesKey:
    """AES-256-GCM with a random nonce a message."""

    type = "aes"

    def __init__(self, name: str, secret: str) -> None:
        """`secret`: 32 bytes in base64."""
        self.name = name
        try:
            key = base64.b64decode(secret, validate=True)
        except (binascii.Error, ValueError):
            raise EncryptionError(f"The encryption key {name!r} is not base64; {_HOW_TO_MAKE}") from None
        if len(key) != KEY_BYTES:
            raise EncryptionError(f"The encryption key {name!r} has {len(key)} bytes, not 32; {_HOW_TO_MAKE}")
        self._aead = AESGCM(key)

    def encrypt(self, text: str, context: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._aead.encrypt(nonce, text.encode(), context.encode())
        return base64.b64encode(nonce + sealed).decode()

    def decrypt(self, body: str, context: str) -> str:
        raw = base64.b64decode(body, validate=True)
        return self._aead.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], context.encode()).decode()


_HOW_TO_MAKE = "make one with `head -c 32 /dev/urandom | base64`"


class Encryption:
    """Encrypts with the first of its keys, decrypts with whichever wrote the text."""

    def __init__(self, keys: Sequence[EncryptionKey]) -> None:
        if not keys:
            raise EncryptionError("At least one encryption key is needed; use `type: identity` for none")
        self._first = keys[0]
        self._keys: dict[tuple[str, str], EncryptionKey] = {}
        for key in keys:
            if (key.type, key.name) in self._keys:
                raise EncryptionError(f"There are two encryption keys of type {key.type} named {key.name!r}")
            self._keys[key.type, key.name] = key

    def encrypt(self, text: str, context: str) -> str:
        """`context` is ``"table.column:<row id>"``; the same is needed to decrypt."""
        return f"enc:{self._first.type}:{quote(self._first.name, safe='')}:{self._first.encrypt(text, context)}"

    def decrypt(self, text: str, context: str) -> Secret:
        """Raises `EncryptionError`, naming the key that is missing or does not fit."""
        parts = text.split(":", 3)
        if len(parts) != 4 or parts[0] != "enc":
            raise EncryptionError(f"What is stored in {context} is not an encrypted secret")
        type_, name = parts[1], unquote(parts[2])
        key = self._keys.get((type_, name))
        if key is None:
            raise EncryptionError(
                f"A secret ({context}) was encrypted with the key {name!r} of type {type_}, "
                "which is not among the configured encryption keys; add it back after the first"
            )
        try:
            return Secret(key.decrypt(parts[3], context))
        except (InvalidTag, ValueError):
            raise EncryptionError(
                f"A secret ({context}) cannot be decrypted with the key {name!r}: "
                "the key has another value than when it was stored, or the text was changed or moved"
            ) from None

    def needs_rotation(self, text: str) -> bool:
        """Whether it was written with another key than the first."""
        return not text.startswith(f"enc:{self._first.type}:{quote(self._first.name, safe='')}:")


def own_key(directory: Path) -> tuple[AesKey, str | None]:
    """The key of a server that has none configured, kept in `encryption.key` under `directory`, mode 0600.

    The second is what to tell the admin when the key has just been made, else None.
    """
    path = directory / "encryption.key"
    made = _make_key_file(path)
    try:
        secret = path.read_text().strip()
    except OSError as error:
        raise EncryptionError(f"Cannot read the encryption key {path}: {error.strerror}") from error
    key = AesKey(MADE_KEY_NAME, secret)
    if not made:
        return key, None
    return key, f"No encryption key is configured; made one in {path}. Back it up: secrets are lost without it"


def _make_key_file(path: Path) -> bool:
    """Whole or not at all, even if two servers try at once: written aside, then linked to its name."""
    if path.exists():
        return False
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        finally:
            aside.unlink()
    except OSError as error:
        raise EncryptionError(f"Cannot write the encryption key {path}: {error.strerror}") from error
    return True
