"""What can go wrong with the database, in words for the person who runs the server."""

from __future__ import annotations

import errno

from sqlalchemy.exc import DBAPIError

from dstack.core.errors import StoreError


class DatabaseError(StoreError):
    """Base: the database cannot do what was asked, and repeating the same request may or may not help."""


class DatabaseBusy(DatabaseError):
    """Another process holds the database file."""


class DatabaseConflict(DatabaseError):
    """PostgreSQL ended a transaction for the sake of another one (a deadlock). It wrote nothing; repeat it."""


class DatabaseFull(DatabaseError):
    """No space is left where the database lives."""


class DatabaseUnreachable(DatabaseError):
    """The PostgreSQL server does not answer, or refuses us."""


_FULL = ("database or disk is full", "no space left on device", "could not extend file")
_BUSY = ("database is locked", "database table is locked")
_READ_ONLY = ("readonly database", "read-only transaction", "unable to open database file")
_CONFLICTS = ("40001", "40P01", "55P03")
"""SQLSTATEs: serialization failure, deadlock detected, lock not available."""
_LOST = ("connection was closed", "connection is closed", "terminating connection", "server closed the connection")


def translate(error: BaseException, where: str) -> DatabaseError | None:
    """Our error for one of the driver's; None when it is not about the database's health.

    `where` names the database for people: a path, or host and name without the password.
    """
    text = str(getattr(error, "orig", None) or error).strip().splitlines()[0:1]
    first = text[0] if text else type(error).__name__
    low = first.lower()
    if any(part in low for part in _FULL) or getattr(error, "errno", None) == errno.ENOSPC:
        return DatabaseFull(f"The disk of the database {where} is full; free some space. ({first})")
    if any(part in low for part in _BUSY):
        return DatabaseBusy(f"The database {where} is locked by another process; stop that one first. ({first})")
    if any(part in low for part in _READ_ONLY):
        return DatabaseError(f"The database {where} cannot be written; check its permissions. ({first})")
    if getattr(getattr(error, "orig", None), "sqlstate", None) in _CONFLICTS:
        return DatabaseConflict(f"Somebody else changed the same rows of the database {where}. ({first})")
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if lost or any(part in low for part in _LOST):
        return DatabaseUnreachable(f"The connection to the database {where} was lost. ({first})")
    return None


def unreachable(error: BaseException, where: str) -> DatabaseError:
    """Our error for a failure to connect."""
    known = translate(error, where)
    if known is not None:
        return known
    reason = str(error).strip().splitlines()[0:1]
    return DatabaseUnreachable(
        f"Cannot connect to the database {where}: {reason[0] if reason else type(error).__name__}. "
        "Check DSTACK_DATABASE_URL and that the database server is running."
    )
