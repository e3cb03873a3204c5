"""Answers the requests of one client until it closes its end."""

from __future__ import annotations

import errno
import os
import stat
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

from dstack.agent.sftp import attributes, wire

READ_BYTES = 256 * 1024
MAX_HANDLES = 1000
NAMES_AT_ONCE = 100
_DEVICES = {os.makedev(1, 3), os.makedev(1, 5)}
"""`/dev/null` and `/dev/zero`: of what is no plain file, these alone can be opened."""

_CODES = {
    errno.ENOENT: wire.NO_SUCH_FILE,
    errno.ENOTDIR: wire.NO_SUCH_FILE,
    errno.EBADF: wire.NO_SUCH_FILE,
    errno.ELOOP: wire.NO_SUCH_FILE,
    errno.EPERM: wire.PERMISSION_DENIED,
    errno.EACCES: wire.PERMISSION_DENIED,
    errno.EFAULT: wire.PERMISSION_DENIED,
    errno.ENAMETOOLONG: wire.BAD_MESSAGE,
    errno.EINVAL: wire.BAD_MESSAGE,
    errno.ENOSYS: wire.UNSUPPORTED,
    errno.EOPNOTSUPP: wire.UNSUPPORTED,
}
EXTENSIONS = {
    b"posix-rename@openssh.com": b"1",
    b"statvfs@openssh.com": b"2",
    b"fstatvfs@openssh.com": b"2",
    b"hardlink@openssh.com": b"1",
    b"fsync@openssh.com": b"1",
    b"lsetstat@openssh.com": b"1",
    b"limits@openssh.com": b"1",
    b"expand-path@openssh.com": b"1",
}

Message = wire.Reader
Answer = Tuple[int, bytes]


class OpenFile(NamedTuple):
    descriptor: int
    appends: bool


class OpenFolder(NamedTuple):
    path: bytes
    names: Iterator[bytes]


class Failed(Exception):
    """An answer with this status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Server:
    """`home` is what `~` stands for; `users` and `groups` name the owners in listings."""

    def __init__(self, home: bytes, users: Dict[int, str], groups: Dict[int, str]) -> None:
        self._home = home
        self._users = users
        self._groups = groups
        self._handles: Dict[bytes, Union[OpenFile, OpenFolder]] = {}
        self._next_handle = 0
        self._calls: Dict[int, Callable[[Message], Answer]] = {
            wire.OPEN: self._open,
            wire.CLOSE: self._close,
            wire.READ: self._read,
            wire.WRITE: self._write,
            wire.LSTAT: lambda message: _attributes(os.lstat(_path(message))),
            wire.STAT: lambda message: _attributes(os.stat(_path(message))),
            wire.FSTAT: lambda message: _attributes(os.fstat(self._file(message).descriptor)),
            wire.SETSTAT: _plainly(lambda message: attributes.apply(_path(message), attributes.read(message))),
            wire.FSETSTAT: self._set_open,
            wire.OPENDIR: self._open_folder,
            wire.READDIR: self._read_folder,
            wire.REMOVE: _plainly(lambda message: os.unlink(_path(message))),
            wire.MKDIR: self._make_folder,
            wire.RMDIR: _plainly(lambda message: os.rmdir(_path(message))),
            wire.REALPATH: lambda message: _name(_real_path(_path(message))),
            wire.RENAME: _plainly(lambda message: _rename(_path(message), _path(message))),
            wire.READLINK: lambda message: _name(os.readlink(_path(message))),
            wire.SYMLINK: _plainly(lambda message: os.symlink(_path(message), _path(message))),
            wire.EXTENDED: self._extended,
        }
        self._extensions: Dict[bytes, Callable[[Message], Answer]] = {
            b"posix-rename@openssh.com": _plainly(lambda message: os.rename(_path(message), _path(message))),
            b"statvfs@openssh.com": lambda message: _file_system(os.statvfs(_path(message))),
            b"fstatvfs@openssh.com": lambda message: _file_system(os.fstatvfs(self._file(message).descriptor)),
            b"hardlink@openssh.com": _plainly(
                lambda message: os.link(_path(message), _path(message), follow_symlinks=False)
            ),
            b"fsync@openssh.com": _plainly(lambda message: os.fsync(self._file(message).descriptor)),
            b"lsetstat@openssh.com": _plainly(
                lambda message: attributes.apply(_path(message), attributes.read(message), follow=False)
            ),
            b"limits@openssh.com": _limits,
            b"expand-path@openssh.com": lambda message: _name(_real_path(self._expand(_path(message)))),
        }

    def serve(self, reading: int, writing: int) -> None:
        """Until the client closes its end. Raises OSError when it does not read, `wire.Malformed` for nonsense."""
        data = b""
        while True:
            more = os.read(reading, READ_BYTES)
            if not more:
                return
            data += more
            position, answers = 0, bytearray()
            while True:
                packet, position = _packet(data, position)
                if packet is None:
                    break
                answers += self.answer(packet)
                if len(answers) >= READ_BYTES:
                    _write_all(writing, answers)
                    answers = bytearray()
            data = data[position:]
            _write_all(writing, answers)

    def answer(self, packet: bytes) -> bytes:
        """The packet that answers one."""
        if packet[:1] == bytes([wire.INIT]):
            pairs = b"".join(wire.text(name) + wire.text(version) for name, version in EXTENSIONS.items())
            return wire.text(bytes([wire.VERSION_REPLY]) + wire.uint32(wire.VERSION) + pairs)
        message = wire.Reader(packet[1:])
        number = message.uint32()
        kind, content = self._answer(packet[0], message)
        return wire.text(bytes([kind]) + wire.uint32(number) + content)

    def _answer(self, kind: int, message: Message) -> Answer:
        try:
            if kind not in self._calls:
                return _status(wire.UNSUPPORTED, f"there is no request {kind}")
            return self._calls[kind](message)
        except Failed as failed:
            return _status(failed.code, str(failed))
        except OSError as error:
            return _status(_CODES.get(error.errno or 0, wire.FAILURE), os.strerror(error.errno or 0))
        except NotImplementedError as error:
            return _status(wire.UNSUPPORTED, str(error))
        except (ValueError, OverflowError, wire.Malformed) as error:
            return _status(wire.BAD_MESSAGE, str(error))

    def _add(self, opened: Union[OpenFile, OpenFolder]) -> Answer:
        self._next_handle += 1
        handle = wire.uint32(self._next_handle)
        self._handles[handle] = opened
        return wire.HANDLE, wire.text(handle)

    def _check_room(self) -> None:
        if len(self._handles) >= MAX_HANDLES:
            raise Failed(wire.FAILURE, f"more than {MAX_HANDLES} files are open")

    def _file(self, message: Message) -> OpenFile:
        found = self._handles.get(message.text())
        if not isinstance(found, OpenFile):
            raise Failed(wire.FAILURE, "there is no such open file")
        return found

    def _open(self, message: Message) -> Answer:
        path, flags, wanted = _path(message), message.uint32(), attributes.read(message)
        self._check_room()
        mode = 0o666 if wanted.permissions is None else wanted.permissions
        return self._add(OpenFile(_open_plain(path, _open_flags(flags), mode), bool(flags & wire.FLAG_APPEND)))

    def _close(self, message: Message) -> Answer:
        found = self._handles.pop(message.text(), None)
        if found is None:
            raise Failed(wire.FAILURE, "there is no such open file")
        if isinstance(found, OpenFile):
            os.close(found.descriptor)
        return _DONE

    def _read(self, message: Message) -> Answer:
        file, offset, size = self._file(message), message.uint64(), message.uint32()
        data = os.pread(file.descriptor, min(size, wire.MAX_DATA_BYTES), offset)
        if not data and size:
            return _status(wire.END_OF_FILE, "the end of the file")
        return wire.DATA, wire.text(data)

    def _write(self, message: Message) -> Answer:
        file, offset, data = self._file(message), message.uint64(), memoryview(message.text())
        while data:
            written = os.write(file.descriptor, data) if file.appends else os.pwrite(file.descriptor, data, offset)
            data, offset = data[written:], offset + written
        return _DONE

    def _set_open(self, message: Message) -> Answer:
        file = self._file(message)
        attributes.apply_to_open(file.descriptor, attributes.read(message))
        return _DONE

    def _open_folder(self, message: Message) -> Answer:
        path = _path(message)
        self._check_room()
        return self._add(OpenFolder(path, iter([b".", b"..", *os.listdir(path)])))

    def _read_folder(self, message: Message) -> Answer:
        folder = self._handles.get(message.text())
        if not isinstance(folder, OpenFolder):
            raise Failed(wire.FAILURE, "there is no such open folder")
        entries: List[bytes] = []
        for name in folder.names:
            try:
                found = os.lstat(os.path.join(folder.path, name))
            except OSError:  # it is gone by now, or not to be seen
                continue
            line = attributes.long_name(name, found, self._users, self._groups)
            entries.append(wire.text(name) + wire.text(line) + attributes.pack(found))
            if len(entries) == NAMES_AT_ONCE:
                break
        if not entries:
            return _status(wire.END_OF_FILE, "the end of the folder")
        return wire.NAME, wire.uint32(len(entries)) + b"".join(entries)

    def _make_folder(self, message: Message) -> Answer:
        path, wanted = _path(message), attributes.read(message)
        os.mkdir(path, 0o777 if wanted.permissions is None else wanted.permissions)
        return _DONE

    def _expand(self, path: bytes) -> bytes:
        if path == b"~" or path.startswith(b"~/"):
            return self._home + path[1:]
        if path.startswith(b"~"):
            raise Failed(wire.FAILURE, "`~` stands for one's own home only")
        return path

    def _extended(self, message: Message) -> Answer:
        name = message.text()
        if name not in self._extensions:
            return _status(wire.UNSUPPORTED, "there is no such extension")
        return self._extensions[name](message)


def _packet(data: bytes, position: int) -> Tuple[Optional[bytes], int]:
    """The whole packet at a position, if there is one, and where it ends."""
    start = position + 4
    if len(data) < start:
        return None, position
    length = int.from_bytes(data[position:start], "big")
    if not 0 < length <= wire.MAX_PACKET_BYTES:
        raise wire.Malformed(f"a packet of {length} bytes")
    end = start + length
    return (data[start:end], end) if end <= len(data) else (None, position)


def _write_all(writing: int, data: bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(writing, left) :]


def _path(message: Message) -> bytes:
    return message.text() or b"."


def _open_flags(flags: int) -> int:
    if flags & wire.FLAG_READ and flags & wire.FLAG_WRITE:
        wanted = os.O_RDWR
    else:
        wanted = os.O_WRONLY if flags & wire.FLAG_WRITE else os.O_RDONLY
    pairs = (
        (wire.FLAG_APPEND, os.O_APPEND),
        (wire.FLAG_CREATE, os.O_CREAT),
        (wire.FLAG_TRUNCATE, os.O_TRUNC),
        (wire.FLAG_EXCLUSIVE, os.O_EXCL),
    )
    for flag, number in pairs:
        wanted |= number if flags & flag else 0
    return wanted


def _open_plain(path: bytes, flags: int, mode: int) -> int:
    """Opens a file, but no device and no pipe: this process may have rights to them that the task has not."""
    try:
        _check_plain(os.stat(path))
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    try:
        _check_plain(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_plain(found: os.stat_result) -> None:
    is_allowed_device = stat.S_ISCHR(found.st_mode) and found.st_rdev in _DEVICES
    if stat.S_ISDIR(found.st_mode):
        raise Failed(wire.FAILURE, "it is a folder")
    if not stat.S_ISREG(found.st_mode) and not is_allowed_device:
        raise Failed(wire.FAILURE, "it is no plain file")


def _real_path(path: bytes) -> bytes:
    """Without links; the last part need not exist."""
    found = os.path.realpath(path)
    os.lstat(os.path.dirname(found))
    return found


def _rename(old: bytes, new: bytes) -> None:
    """Never over something else, as version 3 of the protocol says."""
    if stat.S_ISREG(os.lstat(old).st_mode):
        try:
            os.link(old, new, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
                raise
        else:
            os.unlink(old)
            return
    if os.path.lexists(new):
        raise Failed(wire.FAILURE, os.strerror(errno.EEXIST))
    os.rename(old, new)


def _status(code: int, message: str) -> Answer:
    return wire.STATUS, wire.uint32(code) + wire.text(message.encode("utf-8", "replace")) + wire.text(b"en")


_DONE = _status(wire.OK, "")


def _plainly(action: Callable[[Message], None]) -> Callable[[Message], Answer]:
    """A call that answers nothing but that it was done."""

    def call(message: Message) -> Answer:
        action(message)
        return _DONE

    return call


def _attributes(found: os.stat_result) -> Answer:
    return wire.ATTRS, attributes.pack(found)


def _name(path: bytes) -> Answer:
    return wire.NAME, wire.uint32(1) + wire.text(path) * 2 + wire.uint32(0)


def _file_system(found: os.statvfs_result) -> Answer:
    numbers = (
        *(found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail),
        *(found.f_files, found.f_ffree, found.f_favail, found.f_fsid, found.f_flag & 3, found.f_namemax),
    )
    return wire.EXTENDED_REPLY, b"".join(wire.uint64(number) for number in numbers)


def _limits(_: Message) -> Answer:
    numbers = (wire.MAX_PACKET_BYTES, wire.MAX_DATA_BYTES, wire.MAX_DATA_BYTES, MAX_HANDLES)
    return wire.EXTENDED_REPLY, b"".join(wire.uint64(number) for number in numbers)
