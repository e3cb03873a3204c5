"""The SSH door's pure parts: user names, WebSocket frames, its settings, what answers tell about it."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import orjson
import pytest

from dstack.api.ssh.machine import network_id
from dstack.server.operations import connection_info
from dstack.server.operations.connection_info import Door
from dstack.server.settings import SettingsError, SshAddress, SshPort, load
from dstack.server.ssh_door import websocket
from dstack.server.ssh_door.entry import Wanted, parse_user_name
from dstack.server.ssh_door.listening import proxy_warning
from dstack.server.ssh_door.websocket import BINARY, CLOSE, PING, FrameReader, WebSocketError

PROXY = {"DSTACK_SERVER_SSHPROXY_ADDRESS": "ssh.example", "DSTACK_SSHPROXY_API_TOKEN": "secret"}
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
        ({**PROXY}, SshAddress("127.0.0.1", 3022)),
        ({**PROXY, "DSTACK_SERVER_SSHPROXY_ENFORCED": ""}, None),
    ],
)
def test_what_clients_are_told(environ: dict[str, str], address: SshAddress | None) -> None:
    assert load(environ).ssh_address == address


@pytest.mark.parametrize("missing", [None, *PROXY])
def test_a_separate_proxy_needs_its_address_and_its_token(missing: str | None) -> None:
    environ = {name: value for name, value in PROXY.items() if name != missing}
    settings = load(environ | {"DSTACK_SERVER_SSHPROXY_ENFORCED": "1"})
    assert settings.sshproxy_address == (SshAddress("ssh.example", 22) if missing is None else None)
    assert settings.is_sshproxy_only == (missing is None)
    warning = proxy_warning(settings)
    assert (warning is None) == (missing is None)
    assert warning is None or "DSTACK_SERVER_SSHPROXY_ENFORCED is ignored" in warning
    assert not load(environ).is_sshproxy_only
    assert proxy_warning(load(environ)) is None


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


def info(
    ide: str | None = None, ssh: SshAddress | None = None, *, door: Door | None = None, **job: Any
) -> dict[str, Any]:
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
    found = connection_info.of_job(run, row, Door(ssh, KEY) if door is None else door)
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
        "sshproxy_hostname": None,
        "sshproxy_port": None,
        "sshproxy_upstream_id": None,
        "ssh_door": {"hostname": "host", "port": 22, "username": str(ID), "host_key": KEY},
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
    assert without["ssh_door"] == {"hostname": None, "port": None, "username": str(ID), "host_key": KEY}


def test_a_separate_proxy_is_told_beside_the_door_or_alone() -> None:
    proxy = SshAddress("proxy", 22)
    beside = info(door=Door(SshAddress("host", 3022), KEY, proxy))
    told = {"sshproxy_hostname": "proxy", "sshproxy_port": 22, "sshproxy_upstream_id": str(ID)}
    assert told.items() <= beside.items()
    assert beside["proxied_ssh_command"] == ["ssh", f"{ID}@proxy"]
    assert beside["ssh_door"]["hostname"] == "host"
    alone = info(door=Door(None, KEY, proxy, is_proxy_only=True))
    assert told.items() <= alone.items()
    assert alone["ssh_door"] is None


def test_clients_that_know_no_door_jump_over_it() -> None:
    placed = {"hostname": "10.0.0.5", "dockerized": True, "ssh_port": None, "ssh_proxy": None, "price": 0.5}
    row: Any = {"id": ID, "status": "running", "provisioning_data": json.dumps(placed)}
    told = connection_info.provisioning_data(row, Door(SshAddress("host", 3022), KEY))
    jump = {"hostname": "host", "port": 3022, "username": str(ID)}
    assert told == placed | {"dockerized": False, "ssh_port": 10022, "ssh_proxy": jump}
    for stored in (
        connection_info.provisioning_data(row | {"status": "pulling"}, Door(SshAddress("host", 3022), KEY)),
        connection_info.provisioning_data(row, Door(None, KEY)),
    ):
        assert orjson.loads(orjson.dumps(stored)) == placed
    assert connection_info.provisioning_data(row | {"provisioning_data": None}, Door(None, KEY)) is None


def test_a_job_on_the_servers_machine_says_so() -> None:
    here = info(provisioning_data='{"region":"local","hostname":"127.0.0.1"}')
    assert here["host_network_id"] == network_id()
