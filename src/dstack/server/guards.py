"""Says whether the running task is inside a database transaction. A leaf module: clients of the network ask it.

A transaction that waits for the network holds the only writer of SQLite, or rows that other replicas want.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_inside: ContextVar[bool] = ContextVar("inside_transaction", default=False)


class InsideTransaction(RuntimeError):
    """A mistake in the program: something slow was started while a transaction was open."""


def is_inside_transaction() -> bool:
    return _inside.get()


def assert_no_transaction(what: str = "the network") -> None:
    """Raises `InsideTransaction` when a transaction is open in this task."""
    if _inside.get():
        raise InsideTransaction(f"{what} was used inside a database transaction; commit first, then act")


@contextmanager
def inside_transaction() -> Iterator[None]:
    """Marks the block. Tasks that the block starts inherit the mark, and rightly so: it waits for them."""
    before = _inside.get()
    _inside.set(True)
    try:
        yield
    finally:
        _inside.set(before)
