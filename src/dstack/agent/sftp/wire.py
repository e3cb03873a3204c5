"""Numbers of the protocol, and packing and unpacking of its messages."""

from __future__ import annotations

import struct
from typing import Tuple

VERSION = 3
MAX_PACKET_BYTES = 256 * 1024
MAX_DATA_BYTES = MAX_PACKET_BYTES - 1024

INIT, VERSION_REPLY = 1, 2
OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT = range(3, 11)
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK = range(11, 21)
STATUS, HANDLE, DATA, NAME, ATTRS = range(101, 106)
EXTENDED, EXTENDED_REPLY = 200, 201

OK, END_OF_FILE, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE = range(6)
UNSUPPORTED = 8

FLAG_READ, FLAG_WRITE, FLAG_APPEND, FLAG_CREATE, FLAG_TRUNCATE, FLAG_EXCLUSIVE = 1, 2, 4, 8, 16, 32

_UINT32 = struct.Struct(">I")
_UINT64 = struct.Struct(">Q")


class Malformed(Exception):
    """A message that ends too early."""


class Reader:
    """Takes a message apart from its front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def _take(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        if self._position > len(self._data):
            raise Malformed("the message ends too early")
        return self._data[start : self._position]

    def uint32(self) -> int:
        value: Tuple[int] = _UINT32.unpack(self._take(4))
        return value[0]

    def uint64(self) -> int:
        value: Tuple[int] = _UINT64.unpack(self._take(8))
        return value[0]

    def text(self) -> bytes:
        return self._take(self.uint32())


def uint32(value: int) -> bytes:
    return _UINT32.pack(value & 0xFFFFFFFF)


def uint64(value: int) -> bytes:
    return _UINT64.pack(value & 0xFFFFFFFFFFFFFFFF)


def text(value: bytes) -> bytes:
    return _UINT32.pack(len(value)) + value
