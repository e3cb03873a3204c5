"""The door's own key: made once, kept in the database, the same for all replicas."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.exc import IntegrityError

from dstack.server import clock, ssh_keys
from dstack.server.db.engine import Database
from dstack.server.db.tables import SshHostKeyRow
from dstack.server.encryption import Encryption
from dstack.server.ssh_keys import KeyPair

_ID = UUID("00000000-0000-0000-0000-0000000000e2")
"""There is one row; replicas that make it at once meet here."""


async def ensure(database: Database, encryption: Encryption) -> KeyPair:
    """Raises EncryptionError when the stored key cannot be read with the keys there are."""
    return await _find(database, encryption) or await _make(database, encryption)


async def _find(database: Database, encryption: Encryption) -> KeyPair | None:
    async with database.session() as session:
        row = await session.get(SshHostKeyRow, _ID)
    if row is None:
        return None
    return KeyPair(encryption.decrypt(row.private_key, _context()), row.public_key)


async def _make(database: Database, encryption: Encryption) -> KeyPair:
    pair = ssh_keys.generate("dstack")
    row = SshHostKeyRow(
        id=_ID,
        private_key=encryption.encrypt(pair.private, _context()),
        public_key=pair.public,
        created_at=clock.now(),
    )
    try:
        async with database.transaction() as session:
            session.add(row)
    except IntegrityError:  # another replica was first
        other = await _find(database, encryption)
        assert other is not None
        return other
    return pair


def _context() -> str:
    return f"ssh_host_keys.private_key:{_ID}"
