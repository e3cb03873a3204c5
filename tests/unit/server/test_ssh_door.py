"""The SSH door's pure parts: user names, WebSocket frames, its settings, what answers tell about it."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import pytest

from dstack.api.ssh.machine import network_id
from dstack.server.operations import connection_info
from dstack.server.operations.connection_info import Door
from dstack.server.settings import SettingsError, SshAddress, SshPort, load
from dstack.server.ssh_door import websocket
from dstack.server.ssh_door.entry import Wanted, parse_user_name
from dstack.server.ssh_door.websocket import BINARY, CLOSE, PING, FrameReader, WebSocketError

ID = uuid.UUID("97d32a0c-060a-40fe-9d07-f3a5ddbdd83a")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (str(ID), Wanted(ID, None)),
        (str(ID).upper(), Wanted(ID, None)),
        (f"{ID}_root", Wanted(ID, "root")),
        (f"{ID}_a_b", Wanted(ID, "a_b")),
        (f"{ID}_", None),
        (f"{ID}root", None),
        (ID.hex, None),
        ("{" + str(ID)[1:-1] + "}", None),
        ("admin", None),
        ("", None),
    ],
)
def test_a_user_name_is_the_id_of_a_job_and_may_name_a_user(name: str, wanted: Wanted | None) -> None:
    assert parse_user_name(name) == wanted


def client_frame(kind: int, payload: bytes, *, is_last: bool = True) -> bytes:
    mask = b"\x37\xfa\x21\x3d"
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    first = kind | (0x80 if is_last else 0)
    if len(payload) < 126:
        head = bytes((first, 0x80 | len(payload)))
    elif len(payload) < 1 << 16:
        head = bytes((first, 0x80 | 126)) + len(payload).to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + len(payload).to_bytes(8, "big")
    return head + mask + masked


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_003])
def test_frames_of_every_length_are_read(size: int) -> None:
    payload = os.urandom(size)
    assert FrameReader().feed(client_frame(BINARY, payload)) == [(BINARY, payload)]


def test_frames_may_come_in_pieces_and_together() -> None:
    data = client_frame(BINARY, b"abc") + client_frame(PING, b"p") + client_frame(BINARY, b"x" * 300)
    expected = [(BINARY, b"abc"), (PING, b"p"), (BINARY, b"x" * 300)]
    reader = FrameReader()
    assert [frame for i in range(len(data)) for frame in reader.feed(data[i : i + 1])] == expected
    assert FrameReader().feed(data) == expected


def test_the_parts_of_a_message_are_given_as_they_come() -> None:
    reader = FrameReader()
    assert reader.feed(client_frame(BINARY, b"a", is_last=False)) == [(BINARY, b"a")]
    assert reader.feed(client_frame(PING, b"") + client_frame(0, b"b")) == [(PING, b""), (BINARY, b"b")]
    assert reader.feed(client_frame(CLOSE, b"\x03\xe8")) == [(CLOSE, b"\x03\xe8")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x82\x01a", 1002),  # not masked
        (client_frame(1, b"text"), 1003),
        (client_frame(0, b"goes on"), 1002),
        (client_frame(BINARY, b"a", is_last=False) + client_frame(BINARY, b"b"), 1002),
        (client_frame(PING, b"x" * 126), 1002),
        (client_frame(PING, b"", is_last=False), 1002),
        (b"\xc2\x80\0\0\0\0", 1002),  # compressed
        (b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0", 1009),
        (client_frame(3, b""), 1002),
    ],
)
def test_frames_that_break_the_rules_are_refused(data: bytes, code: int) -> None:
    with pytest.raises(WebSocketError) as caught:
        FrameReader().feed(data)
    assert caught.value.code == code


def test_the_handshake_is_that_of_rfc_6455() -> None:
    headers = {
        "connection": "keep-alive, Upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
    }
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in websocket.accept(headers)
    for name in headers:
        with pytest.raises(WebSocketError):
            websocket.accept({**headers, name: "other" if name != "sec-websocket-key" else ""})


@pytest.mark.parametrize(
    ("value", "port"),
    [
        (None, SshPort(3022, is_default=True)),
        ("", SshPort(3022, is_default=True)),
        ("3022", SshPort(3022)),
        ("0", SshPort(0)),
        ("off", None),
        ("OFF", None),
    ],
)
def test_the_port_of_the_door(value: str | None, port: SshPort | None) -> None:
    assert load({} if value is None else {"DSTACK_SERVER_SSH_PORT": value}).ssh_port == port


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, SshAddress("127.0.0.1", 3022)),
        ({"DSTACK_SERVER_URL": "https://dstack.example/x"}, SshAddress("dstack.example", 3022)),
        ({"DSTACK_SERVER_HOST": "::1"}, SshAddress("::1", 3022)),
        ({"DSTACK_SERVER_SSHPROXY_ADDRESS": "ssh.example"}, SshAddress("ssh.example", 22)),
        ({"DSTACK_SERVER_SSHPROXY_ADDRESS": "[::1]:2222"}, SshAddress("::1", 2222)),
        ({"DSTACK_SERVER_SSH_PORT": "off", "DSTACK_SERVER_SSHPROXY_ADDRESS": "ssh.example"}, None),
    ],
)
def test_what_clients_are_told(environ: dict[str, str], address: SshAddress | None) -> None:
    assert load(environ).ssh_address == address


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("DSTACK_SERVER_SSH_PORT", "ssh", "expected a whole number, 0 to 65535, or 'off'"),
        ("DSTACK_SERVER_SSHPROXY_ADDRESS", "ssh://host", "expected host or host:port"),
        ("DSTACK_SERVER_SSHPROXY_ADDRESS", "host:many", "expected host or host:port"),
        ("DSTACK_SERVER_SSHPROXY_ADDRESS", "me@host", "expected host or host:port"),
    ],
)
def test_a_bad_setting_says_what_would_be_right(name: str, value: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        load({name: value})


KEY = "ssh-ed25519 AAAA"


def info(ide: str | None = None, ssh: SshAddress | None = None, **job: Any) -> dict[str, Any]:
    configuration = {"type": "dev-environment", "ide": ide} if ide else {"type": "task"}
    run: Any = {"run_name": "dev", "run_spec": json.dumps({"configuration": configuration}, separators=(",", ":"))}
    row: Any = {
        "id": ID,
        "status": "running",
        "replica_num": 0,
        "job_num": 0,
        "job_spec": '{"job_name": "dev-1-0"}',
        "runtime_data": '{"working_dir": "/workflow"}',
        "provisioning_data": '{"region":"eu","hostname":"h"}',
        **job,
    }
    found = connection_info.of_job(run, row, Door(ssh, KEY))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("ide", "name", "attached", "proxied"),
    [
        (
            "vscode",
            "VS Code",
            "vscode://vscode-remote/ssh-remote+dev/workflow",
            f"vscode://vscode-remote/ssh-remote+{ID}@host:3022/workflow",
        ),
        (
            "cursor",
            "Cursor",
            "cursor://vscode-remote/ssh-remote+dev/workflow",
            f"cursor://vscode-remote/ssh-remote+{ID}@host:3022/workflow",
        ),
        (
            "windsurf",
            "Windsurf",
            "windsurf://vscode-remote/ssh-remote+dev/workflow",
            f"windsurf://vscode-remote/ssh-remote+{ID}@host:3022/workflow",
        ),
        ("zed", "Zed", "zed://ssh/dev/workflow", f"zed://ssh/{ID}@host:3022/workflow"),
    ],
)
def test_a_dev_environment_has_its_ide(ide: str, name: str, attached: str, proxied: str) -> None:
    found = info(ide, SshAddress("host", 3022))
    assert (found["ide_name"], found["attached_ide_url"], found["proxied_ide_url"]) == (name, attached, proxied)


def test_how_to_get_into_a_job() -> None:
    assert info(None, SshAddress("host", 22)) == {
        "ide_name": None,
        "attached_ide_url": None,
        "proxied_ide_url": None,
        "attached_ssh_command": ["ssh", "dev"],
        "proxied_ssh_command": ["ssh", f"{ID}@host"],
        "sshproxy_hostname": "host",
        "sshproxy_port": 22,
        "sshproxy_upstream_id": str(ID),
        "sshproxy_host_key": KEY,
        "host_network_id": None,
    }
    assert info(None, SshAddress("host", 3022))["proxied_ssh_command"] == ["ssh", "-p", "3022", f"{ID}@host"]
    assert info(job_num=1)["attached_ssh_command"] == ["ssh", "dev-1-0"]
    without = info("vscode")
    assert [key for key, value in without.items() if value is None] == [
        "proxied_ide_url",
        "proxied_ssh_command",
        "sshproxy_hostname",
        "sshproxy_port",
        "sshproxy_upstream_id",
        "host_network_id",
    ]


def test_a_job_on_the_servers_machine_says_so() -> None:
    here = info(provisioning_data='{"region":"local","hostname":"127.0.0.1"}')
    assert here["host_network_id"] == network_id()
