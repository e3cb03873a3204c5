"""The SFTP server's answers to single requests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dstack.agent.sftp import attributes, wire
from dstack.agent.sftp.server import EXTENSIONS, MAX_HANDLES, Server
from dstack.agent.within import NotAllowed, find_user

NO_ATTRIBUTES = wire.uint32(0)


class Client:
    """Asks `Server` as a client would."""

    def __init__(self, home: Path) -> None:
        self.server = Server(os.fsencode(home), {0: "root"}, {0: "root"})

    def ask(self, kind: int, *fields: bytes) -> tuple[int, wire.Reader]:
        answer = self.server.answer(bytes([kind]) + wire.uint32(7) + b"".join(fields))
        assert int.from_bytes(answer[:4], "big") == len(answer) - 4
        reader = wire.Reader(answer[5:])
        assert reader.uint32() == 7
        return answer[4], reader

    def status(self, kind: int, *fields: bytes) -> int:
        answered, reader = self.ask(kind, *fields)
        assert answered == wire.STATUS
        return reader.uint32()

    def open(self, path: Path, flags: int) -> bytes:
        answered, reader = self.ask(wire.OPEN, text(path), wire.uint32(flags), NO_ATTRIBUTES)
        assert answered == wire.HANDLE
        return wire.text(reader.text())


def text(path: Path | str) -> bytes:
    return wire.text(os.fsencode(path))


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def test_the_greeting_names_the_extensions(client: Client) -> None:
    answer = client.server.answer(bytes([wire.INIT]) + wire.uint32(3))
    reader = wire.Reader(answer[5:])
    assert (answer[4], reader.uint32()) == (wire.VERSION_REPLY, 3)
    assert {reader.text(): reader.text() for _ in EXTENSIONS} == EXTENSIONS


def test_reading_and_writing_by_offset(client: Client, tmp_path: Path) -> None:
    flags = wire.FLAG_READ | wire.FLAG_WRITE | wire.FLAG_CREATE
    handle = client.open(tmp_path / "file", flags)
    assert client.status(wire.WRITE, handle, wire.uint64(3), wire.text(b"def")) == wire.OK
    assert client.status(wire.WRITE, handle, wire.uint64(0), wire.text(b"abc")) == wire.OK
    answered, reader = client.ask(wire.READ, handle, wire.uint64(1), wire.uint32(100))
    assert (answered, reader.text()) == (wire.DATA, b"bcdef")
    assert client.status(wire.READ, handle, wire.uint64(6), wire.uint32(1)) == wire.END_OF_FILE
    assert client.status(wire.CLOSE, handle) == wire.OK
    assert client.status(wire.CLOSE, handle) == wire.FAILURE


def test_rename_never_replaces_and_posix_rename_does(client: Client, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    assert client.status(wire.RENAME, text(one), text(other)) == wire.FAILURE
    assert (one.read_text(), other.read_text()) == ("1", "2")
    name = wire.text(b"posix-rename@openssh.com")
    assert client.status(wire.EXTENDED, name, text(one), text(other)) == wire.OK
    assert (one.exists(), other.read_text()) == (False, "1")


def test_attributes_are_set_on_files_and_links(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("file")
    wanted = attributes.SIZE | attributes.PERMISSIONS | attributes.TIMES
    fields = wire.uint32(wanted) + wire.uint64(4) + wire.uint32(0o640) + wire.uint32(1000) + wire.uint32(2000)
    assert client.status(wire.SETSTAT, text(tmp_path / "link"), fields) == wire.OK
    found = (tmp_path / "file").stat()
    assert (found.st_size, found.st_mode & 0o777, found.st_atime, found.st_mtime) == (4, 0o640, 1000, 2000)
    times = wire.uint32(attributes.TIMES) + wire.uint32(5) + wire.uint32(6)
    name = wire.text(b"lsetstat@openssh.com")
    assert client.status(wire.EXTENDED, name, text(tmp_path / "link"), times) == wire.OK
    assert (tmp_path / "link").lstat().st_mtime == 6
    assert (tmp_path / "file").stat().st_mtime == 2000


def test_a_real_path_may_lack_its_last_part_only(client: Client, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    answered, reader = client.ask(wire.REALPATH, text(tmp_path / "link" / ".." / tmp_path.name / "new"))
    assert (answered, reader.uint32()) == (wire.NAME, 1)
    assert reader.text() == os.fsencode(tmp_path / "new")
    assert client.status(wire.REALPATH, text(tmp_path / "no" / "new")) == wire.NO_SUCH_FILE
    answered, reader = client.ask(wire.EXTENDED, wire.text(b"expand-path@openssh.com"), wire.text(b"~/x"))
    assert (answered, reader.uint32(), reader.text()) == (wire.NAME, 1, os.fsencode(tmp_path / "x"))


def test_what_is_wrong_has_its_status(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert client.status(99) == wire.UNSUPPORTED
    assert client.status(wire.EXTENDED, wire.text(b"unknown@example.com")) == wire.UNSUPPORTED
    assert client.status(wire.LSTAT, wire.uint32(50), b"too short") == wire.BAD_MESSAGE
    assert client.status(wire.LSTAT, wire.text(b"a\0b")) == wire.BAD_MESSAGE
    assert client.status(wire.STAT, text(tmp_path / "missing")) == wire.NO_SUCH_FILE
    assert client.status(wire.OPENDIR, text(tmp_path / "file")) == wire.NO_SUCH_FILE
    assert client.status(wire.OPEN, text(tmp_path), wire.uint32(1), NO_ATTRIBUTES) == wire.FAILURE


def test_a_pipe_is_refused_without_waiting(client: Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert client.status(wire.OPEN, text(tmp_path / "pipe"), wire.uint32(1), NO_ATTRIBUTES) == wire.FAILURE


def test_open_files_are_limited(client: Client) -> None:
    null = Path("/dev/null")
    handles = [client.open(null, wire.FLAG_READ) for _ in range(MAX_HANDLES)]
    assert client.status(wire.OPEN, text(null), wire.uint32(1), NO_ATTRIBUTES) == wire.FAILURE
    for handle in handles:
        assert client.status(wire.CLOSE, handle) == wire.OK


def test_a_folder_is_listed_in_pieces(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(150):
        (folder / str(number)).touch()
    answered, reader = client.ask(wire.OPENDIR, text(folder))
    handle, names = wire.text(reader.text()), []
    while True:
        answered, reader = client.ask(wire.READDIR, handle)
        if answered == wire.STATUS:
            break
        for _ in range(reader.uint32()):
            names.append(reader.text())
            assert reader.text().endswith(names[-1])
            attributes.read(reader)
    assert sorted(names) == sorted([b".", b"..", *(str(number).encode() for number in range(150))])


def test_a_packet_that_is_too_long_ends_the_session(client: Client) -> None:
    reading, writing = os.pipe()
    os.write(writing, wire.uint32(wire.MAX_PACKET_BYTES + 1))
    try:
        with pytest.raises(wire.Malformed):
            client.server.serve(reading, writing)
    finally:
        os.close(reading)
        os.close(writing)


def test_users_are_found_by_name_and_number() -> None:
    assert find_user("root")[:2] == (0, 0)
    assert find_user("12345:678")[:3] == (12345, 678, [])
    with pytest.raises(NotAllowed, match="there is no user 'nosuchuser'"):
        find_user("nosuchuser")
