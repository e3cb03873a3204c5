"""Attaching with the real `ssh` to a real sshd, directly, as to a container, and through a WebSocket."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.plain_sshd import Sshd, make_key
from tests.fixtures.ports import take_free_port
from tests.fixtures.processes import wait_until
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from dstack.api.attach import Attachment, find_job
from dstack.api.errors import AttachError
from dstack.api.rest.client import RestClient
from dstack.api.ssh.ports import PortWish, ReservedPorts

ID = "0f3e9a52-7f8e-4a44-9d2c-000000000001"
TOKEN = "tok"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[int]:
    """An HTTP server as a job may run one; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello from the job")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def rest(home: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[RestClient]:
    """Of a server that is never asked: the user's key is on file."""
    folder = home / ".dstack" / "ssh"
    folder.mkdir(parents=True)
    for suffix in ("", ".pub"):
        path = folder / f"79bead8e{suffix}"
        path.write_text(sshd.identity.with_name(f"identity{suffix}").read_text())
        path.chmod(0o600)
    with RestClient("http://127.0.0.1:1", TOKEN) as client:
        yield client


def make_run(sshd: Sshd, *ports: int, told: dict[str, Any] | None = None, dockerized: bool = False) -> Any:
    placed = {
        "hostname": "127.0.0.1",
        "ssh_port": sshd.port,
        "username": sshd.user,
        "dockerized": dockerized,
        "ssh_proxy": None,
        "instance_id": "i-1",
    }
    submission = {
        "id": ID,
        "status": "running",
        "job_provisioning_data": placed,
        "job_runtime_data": {"ports": {"10022": sshd.port}, "username": sshd.user},
    }
    spec = {
        "job_name": "train-0-0",
        "job_num": 0,
        "replica_num": 0,
        "app_specs": [{"port": port, "map_to_port": None, "app_name": "app"} for port in ports],
    }
    job = {"job_spec": spec, "job_submissions": [submission], "job_connection_info": told}
    run_spec = {"run_name": "train", "ssh_key_pub": sshd.identity.with_name("identity.pub").read_text()}
    return {"run_spec": run_spec, "status": "running", "jobs": [job]}


def fetch(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(4096), b"")).rpartition(b"\r\n")[2]


def shell(home: Path, command: str) -> str:
    """What a person gets from `ssh train command`."""
    config = home / ".ssh" / "config"
    done = subprocess.run(["ssh", "-F", str(config), "train", command], capture_output=True, text=True, timeout=30)
    return done.stdout or done.stderr


@pytest.mark.parametrize("dockerized", [False, True])
def test_shell_and_ports(home: Path, rest: RestClient, sshd: Sshd, app: int, dockerized: bool) -> None:
    run = make_run(sshd, app, dockerized=dockerized)
    with Attachment(rest, run, find_job(run)) as attachment:
        attachment.wait_ready()
        assert attachment.name == "train"
        assert attachment.ports[app] != app, "the job's own port is taken on this machine"
        assert fetch(attachment.ports[app]) == b"hello from the job"
        assert shell(home, "echo from $((40 + 2))") == "from 42\n"
        learned = (home / ".dstack/ssh/known_hosts").read_text()
        assert len(learned.splitlines()) == (2 if dockerized else 1)
    assert (home / ".dstack/ssh/config").read_text() == ""
    with pytest.raises(OSError, match="refused"):
        fetch(attachment.ports[app])


def test_a_host_that_changes_its_key_is_refused(home: Path, rest: RestClient, sshd: Sshd, tmp_path: Path) -> None:
    run = make_run(sshd)
    other = make_key(tmp_path / "other").rpartition(" ")[0]
    (home / ".dstack/ssh/known_hosts").write_text(f"{ID} {other}\n")
    attached = Attachment(rest, run, find_job(run))
    with attached, pytest.raises(AttachError, match="Host key verification failed"):
        attached.wait_ready()


def test_a_cut_connection_is_made_again(rest: RestClient, sshd: Sshd, app: int) -> None:
    run = make_run(sshd, app)
    said: list[str] = []
    with Attachment(rest, run, find_job(run), notify=said.append) as attachment:
        attachment.wait_ready()
        sshd.cut_connections()
        wait_until(lambda: "Attached again." in said, what="another connection")
        assert fetch(attachment.ports[app]) == b"hello from the job"
    assert said == ["The connection broke; attaching again…", "Attached again."]


def test_two_at_once(home: Path, rest: RestClient, sshd: Sshd, app: int) -> None:
    run = make_run(sshd, app)
    with Attachment(rest, run, find_job(run)) as first:
        first.wait_ready()
        with Attachment(rest, run, find_job(run)) as second:
            second.wait_ready()
            assert first.ports != second.ports
            assert fetch(second.ports[app]) == b"hello from the job"
        assert shell(home, "echo still") == "still\n"


def door(sshd: Sshd, hostname: str | None = None, port: int | None = None) -> dict[str, Any]:
    """The SSH server as the door of a server; without an address only the carrier leads there."""
    return {"ssh_door": {"hostname": hostname, "port": port, "username": sshd.user, "host_key": sshd.host_key}}


def test_a_refused_key(rest: RestClient, sshd: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    run = make_run(sshd, told=door(sshd, "127.0.0.1", sshd.port))
    attached = Attachment(rest, run, find_job(run), ssh_identity=str(tmp_path / "stranger"))
    with attached, pytest.raises(AttachError, match="Permission denied"):
        attached.wait_ready()


def test_another_key_than_the_runs(rest: RestClient, sshd: Sshd) -> None:
    run = make_run(sshd)
    run["run_spec"]["ssh_key_pub"] = "ssh-ed25519 AAAA other\n"
    with pytest.raises(AttachError, match="submitted with another SSH key: give its private half"):
        Attachment(rest, run, find_job(run))


def test_ports_are_reserved() -> None:
    wanted = take_free_port()
    first, second = ReservedPorts(), ReservedPorts()
    first.reserve([PortWish(80, wanted)])
    with pytest.raises(AttachError, match=f"The local port {wanted} on localhost is in use"):
        second.reserve([PortWish(80, wanted)])
    second.reserve([PortWish(wanted)])
    assert second.mapping[wanted] != wanted
    first.release()
    first.hold()
    first.release()
    third = ReservedPorts()
    third.reserve([PortWish(80, wanted)])
    third.release()
    second.release()
    with pytest.raises(AttachError, match="is no address of this machine"):
        ReservedPorts("192.0.2.1").reserve([PortWish(80)])


class Relay:
    """A server whose `/api/ssh` carries bytes to sshd."""

    def __init__(self, sshd: Sshd, certificate: Path | None = None) -> None:
        self.requests: list[Request] = []
        self._sshd = sshd
        self._scheme = "http" if certificate is None else "https"
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
        self._server = serve(
            self._carry,
            "127.0.0.1",
            0,
            process_request=self._check,
            compression=None,
            ping_interval=0.2,
            ssl=context,
        )
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.socket.getsockname()[1]}/base"

    @contextlib.contextmanager
    def running(self) -> Iterator[Relay]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        if request.headers["Authorization"] == f"Bearer {TOKEN}":
            return None
        return connection.respond(http.HTTPStatus.FORBIDDEN, json.dumps({"detail": {"msg": "Unknown token"}}))

    def _carry(self, connection: ServerConnection) -> None:
        with socket.create_connection(("127.0.0.1", self._sshd.port)) as inner:
            back = threading.Thread(target=self._carry_back, args=(inner, connection))
            back.start()
            with contextlib.suppress(ConnectionClosed, OSError):
                while data := connection.recv():
                    assert isinstance(data, bytes)
                    inner.sendall(data)
            with contextlib.suppress(OSError):
                inner.shutdown(socket.SHUT_RDWR)
            back.join()

    def _carry_back(self, inner: socket.socket, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            while data := inner.recv(1 << 17):
                connection.send(data)
        connection.close()


@pytest.fixture
def relay(sshd: Sshd) -> Iterator[Relay]:
    with Relay(sshd).running() as relay:
        yield relay


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, which nobody has signed, with its key."""
    path = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", f"{path}.public"],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + Path(f"{path}.public").read_text())
    return path


def test_through_a_web_socket_with_tls(
    home: Path, rest: RestClient, sshd: Sshd, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Relay(sshd, certificate).running() as relay:
        copy_through(home, relay, sshd, tmp_path, monkeypatch, certificate=f"{certificate}.public")


def test_an_unknown_certificate_is_refused(home: Path, sshd: Sshd, certificate: Path) -> None:
    run = make_run(sshd, told=door(sshd))
    with Relay(sshd, certificate).running() as relay, RestClient(relay.url, TOKEN) as client:
        attached = Attachment(client, run, find_job(run))
        with attached, pytest.raises(AttachError, match="CERTIFICATE_VERIFY_FAILED"):
            attached.wait_ready()


def test_through_a_web_socket(
    home: Path, rest: RestClient, relay: Relay, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_through(home, relay, sshd, tmp_path, monkeypatch)


def copy_through(
    home: Path,
    relay: Relay,
    sshd: Sshd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    certificate: str | None = None,
) -> None:
    """10 MB there and back, and the exit status."""
    if certificate is not None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
    run = make_run(sshd, told=door(sshd))
    content = tmp_path / "content"
    content.write_bytes(bytes(range(256)) * 40_000)
    with RestClient(relay.url, TOKEN) as client:
        attached = Attachment(client, run, find_job(run), ssh_identity=str(sshd.identity))
    with attached:
        attached.wait_ready()
        config = home / ".dstack/ssh/config"
        assert "ProxyCommand" in config.read_text()
        assert TOKEN not in config.read_text()
        assert (home / ".dstack/ssh/train.access.json").stat().st_mode & 0o777 == 0o600
        copied = subprocess.run(
            ["ssh", "-F", str(config), "train", f"tee {tmp_path / 'copy'}; exit 7"],
            input=content.read_bytes(),
            capture_output=True,
            timeout=60,
        )
        assert (copied.returncode, copied.stderr) == (7, b"")
        assert copied.stdout == content.read_bytes() == (tmp_path / "copy").read_bytes()
    assert {request.path for request in relay.requests} == {"/base/api/ssh"}
    assert not (home / ".dstack/ssh/train.access.json").exists()


def test_a_web_socket_that_is_refused(home: Path, relay: Relay, sshd: Sshd) -> None:
    run = make_run(sshd, told=door(sshd))
    with RestClient(relay.url, "wrong") as client, Attachment(client, run, find_job(run)):
        assert shell(home, "true").startswith("dstack: Unknown token")
