"""Public keys of a user that open jobs, beside the pair that the server made."""

from __future__ import annotations

import base64
import binascii
import hashlib
import uuid
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.errors import InvalidRequest, ResourceExists, ResourceNotExists
from dstack.core.events import EventTargetType
from dstack.core.public_keys import PublicKeyInfo
from dstack.core.schemas.public_keys import AddPublicKeyRequest
from dstack.server import clock, events
from dstack.server.access import Caller
from dstack.server.db.tables import UserPublicKeyRow
from dstack.server.operations.context import Context

MAX_KEY_LENGTH = 16 * 1024
MAX_NAME_LENGTH = 200


class ParsedKey(NamedTuple):
    """One line of OpenSSH's format."""

    type: str
    text: str
    """Type and base64, without the comment."""
    comment: str
    fingerprint: str


async def list_keys(ctx: Context, caller: Caller) -> list[PublicKeyInfo]:
    """The caller's, oldest first."""
    statement = select(UserPublicKeyRow).where(UserPublicKeyRow.user_id == caller.user_id)
    async with ctx.database.session() as session:
        rows = await session.scalars(statement.order_by(UserPublicKeyRow.added_at, UserPublicKeyRow.id))
        return [_to_info(row) for row in rows]


async def add_key(ctx: Context, caller: Caller, wanted: AddPublicKeyRequest) -> PublicKeyInfo:
    """Raises InvalidRequest for what is no key, ResourceExists for one that the caller has."""
    key = parse_key(wanted.key)
    row = UserPublicKeyRow(
        id=uuid.uuid4(),
        user_id=caller.user_id,
        name=(wanted.name or key.comment or key.fingerprint)[:MAX_NAME_LENGTH],
        type=key.type,
        fingerprint=key.fingerprint,
        key=key.text,
        added_at=clock.now(),
    )
    same = (UserPublicKeyRow.user_id == caller.user_id, UserPublicKeyRow.fingerprint == key.fingerprint)
    async with ctx.database.transaction() as session:
        if await session.scalar(select(UserPublicKeyRow.id).where(*same)) is not None:
            raise ResourceExists(f"You have added the key {key.fingerprint} already")
        session.add(row)
        await session.flush()
        await _record(session, caller, f"Public key {key.fingerprint} added")
    return _to_info(row)


async def delete_keys(ctx: Context, caller: Caller, ids: list[UUID]) -> None:
    """All or none."""
    async with ctx.database.transaction() as session:
        for id_ in ids:
            fingerprint = await session.scalar(
                delete(UserPublicKeyRow)
                .where(UserPublicKeyRow.user_id == caller.user_id, UserPublicKeyRow.id == id_)
                .returning(UserPublicKeyRow.fingerprint)
            )
            if fingerprint is None:
                raise ResourceNotExists(f"You have no public key {id_}")
            await _record(session, caller, f"Public key {fingerprint} deleted")


def parse_key(line: str) -> ParsedKey:
    """Raises InvalidRequest saying what is wrong. The key's own bytes must name the same type."""
    parts = line.split(maxsplit=2)
    if len(line) > MAX_KEY_LENGTH or len(parts) < 2 or "\n" in line.strip():
        raise InvalidRequest("`key` must be one line in OpenSSH's format, such as 'ssh-ed25519 AAAA… comment'")
    type_, encoded = parts[0], parts[1]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("The second part of `key` is not base64") from None
    length = int.from_bytes(blob[:4], "big")
    if len(type_) > 64 or len(blob) <= 4 + length or blob[4 : 4 + length] != type_.encode():
        raise InvalidRequest(f"`key` is not a public key of type {type_[:64]!r}")
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return ParsedKey(type_, f"{type_} {encoded}", parts[2].strip() if len(parts) > 2 else "", f"SHA256:{digest}")


def _to_info(row: UserPublicKeyRow) -> PublicKeyInfo:
    return PublicKeyInfo(
        id=row.id, added_at=row.added_at, name=row.name, type=row.type, fingerprint=row.fingerprint
    )


async def _record(session: AsyncSession, caller: Caller, message: str) -> None:
    target = events.Target(EventTargetType.USER.value, caller.user_id, caller.username)
    await events.record(session, message, actor=caller.user_id, targets=[target])
