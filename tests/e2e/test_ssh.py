"""OpenSSH's own programs into jobs of a real server: commands, terminals, files, ports, by port and WebSocket."""

from __future__ import annotations

import base64
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import textwrap
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from tests.e2e.harness import TOKEN, ApiError, ServerProcess, free_port, processes_with, wait_for
from tests.e2e.ssh import Ssh, ask, is_listening, make_key
from tests.fixtures.docker import DockerDaemon

ECHO = """
import socket, sys, threading
def serve(connection):
    while data := connection.recv(65536):
        connection.sendall(data.upper())
    connection.sendall(b"!")
    connection.close()
where = sys.argv[1]
listener = socket.socket(socket.AF_INET if where.isdigit() else socket.AF_UNIX)
listener.bind(("127.0.0.1", int(where)) if where.isdigit() else where)
listener.listen()
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def python(code: str, *arguments: str) -> str:
    """A shell command that runs it."""
    encoded = base64.b64encode(textwrap.dedent(code).encode()).decode()
    return f"{sys.executable} -c \"import base64;exec(base64.b64decode('{encoded}'))\" {' '.join(arguments)}"


def started(server: ServerProcess, name: str = "job", *commands: str, **configuration: object) -> Ssh:
    """Into a new task that runs."""
    server.submit(name, [*commands, "sleep 1000"], **configuration)
    server.wait_run(name, "running")
    return Ssh.of_run(server, name)


def test_commands_in_a_process(server: ServerProcess) -> None:
    ssh = started(server, env={"COLOUR": "blue"})
    ended = ssh("echo out; echo err >&2; echo $COLOUR $DSTACK_RUN_NAME; exit 3")
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"out\nblue job\n", b"err\n")
    data = os.urandom(3_000_000)
    assert ssh("cat", stdin=data).stdout == data
    assert ssh("bash -s a b", stdin=b"echo $2 $1\npwd\n").stdout.split()[:2] == [b"b", b"a"]
    assert ssh(stdin=b"echo from a shell\nexit 4\n").returncode == 4
    ended = ssh("kill -TERM $$", flags=("-v", "-o", "LogLevel=DEBUG1"))
    assert (ended.returncode, b"rtype exit-signal" in ended.stderr) == (255, True)
    assert ssh("echo $LC_DOOR", flags=("-o", "SetEnv=LC_DOOR=ajar")).stdout == b"ajar\n"


def test_a_terminal(server: ServerProcess) -> None:
    ssh = started(server)
    ended = ssh("stty size; tty; echo $TERM", flags=("-tt", "-o", "SetEnv=TERM=xterm"))
    size, tty, term = ended.stdout.decode().split("\r\n")[:3]
    assert (len(size.split()), tty.startswith("/dev/pts/"), term) == (2, True, "xterm")

    ours, theirs = os.openpty()
    loop = "trap 'stty size' WINCH; trap 'exit 7' INT; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen([*ssh.command("-tt"), loop], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""

    def shows(text: bytes) -> bool:
        nonlocal seen
        seen += os.read(ours, 65536)
        return text in seen

    try:
        wait_for("the terminal", lambda: shows(b"ready"))
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        process.send_signal(signal.SIGWINCH)
        wait_for("the new size", lambda: shows(b"33 99"))
        os.write(ours, b"\x03")
        assert process.wait(20) == 7
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_client_that_goes_away_ends_its_command(server: ServerProcess) -> None:
    ssh = started(server)
    marker = "8642.75"
    process = subprocess.Popen([*ssh.command(), f"sleep {marker}"], stdin=subprocess.DEVNULL)
    command_line = f"sleep\0{marker}"
    wait_for("the command", lambda: processes_with(command_line))
    process.kill()
    process.wait()
    wait_for("the command to end", lambda: not processes_with(command_line))


def test_files(server: ServerProcess, tmp_path: Path) -> None:
    ssh = started(server)
    content = os.urandom(2_000_000)
    (tmp_path / "sent").write_bytes(content)
    folder = ssh("d=$(mktemp -d); echo $d").stdout.decode().strip()
    there = f"{ssh.destination}:{folder}"
    ended = ssh.program("scp", *ssh.flags, str(tmp_path / "sent"), f"{there}/sent")
    assert ended.returncode == 0, ended.stderr
    assert Path(folder, "sent").read_bytes() == content
    ended = ssh.program("scp", "-r", *ssh.flags, there, str(tmp_path / "got"))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "got/sent").read_bytes() == content
    batch = tmp_path / "batch"
    batch.write_text(f"cd {folder}\nrename sent renamed\nmkdir sub\nls -l\nget renamed {tmp_path}/third\n")
    ended = ssh.program("sftp", *ssh.flags, "-b", str(batch), ssh.destination)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "third").read_bytes() == content
    if shutil.which("rsync") is None:
        pytest.skip("all but rsync, which is not installed, was tested")
    transport = " ".join(["ssh", *(f"'{flag}'" for flag in ssh.flags)])
    ended = ssh.program("rsync", "-a", "-e", transport, f"{tmp_path}/got/", f"{there}/sub/")
    assert ended.returncode == 0, ended.stderr
    assert Path(folder, "sub/sent").read_bytes() == content


def test_ports_and_sockets(server: ServerProcess, tmp_path: Path) -> None:
    port, socks, sock = free_port(), free_port(), str(tmp_path / "s")
    ssh = started(server, "job", f"{python(ECHO, str(port))} &", f"{python(ECHO, sock)} &")
    wait_for("the servers of the job", lambda: server.log("job").count(b"listening") == 2)
    with ssh.forwarding(port) as local:
        assert ask(local, b"over tcp") == b"OVER TCP!"
        data = b"x" * 200_000
        assert ask(local, data) == data.upper() + b"!"
    with ssh.forwarding(sock) as local:
        assert ask(local, b"over unix") == b"OVER UNIX!"
    assert ssh(flags=("-W", f"localhost:{port}"), stdin=b"over -W").stdout == b"OVER -W!"
    with ssh.background("-D", str(socks)) as process:
        wait_for("ssh to listen", lambda: is_listening(socks))
        assert ask_socks(socks, "localhost", port, b"over socks") == b"OVER SOCKS!"
        with pytest.raises(ConnectionError):
            ask_socks(socks, "example.org", 80, b"GET /")
        with pytest.raises(ConnectionError):
            ask_socks(socks, "localhost", free_port(), b"")
        assert process.poll() is None, "the connection goes on"
    refused = ssh("true", flags=("-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:22"))
    assert refused.returncode == 255
    refused = ssh(flags=("-v", "-W", "example.org:80"))
    assert b"only ports of the job are reached here, not example.org" in refused.stderr
    assert refused.returncode != 0


def ask_socks(proxy: int, host: str, port: int, data: bytes) -> bytes:
    """Through SOCKS 5, the name resolved on the other side. Raises ConnectionError when that refuses."""
    with socket.create_connection(("127.0.0.1", proxy), timeout=20) as connection:
        connection.sendall(b"\x05\x01\x00")
        assert connection.recv(2) == b"\x05\x00"
        connection.sendall(b"\x05\x01\x00\x03" + bytes((len(host),)) + host.encode() + port.to_bytes(2, "big"))
        answer = connection.recv(10)
        if answer[1:2] != b"\x00":
            raise ConnectionError("refused")
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while part := connection.recv(65536):
            got += part
        return got


def test_what_an_ide_does(server: ServerProcess) -> None:
    """A script over standard input that starts a server of its own, then many channels to it on one connection."""
    ssh = started(server)
    port, socks, local = free_port(), free_port(), free_port()
    control = ("-o", f"ControlPath={server.home}/c", "-o", "ControlMaster=no")
    with ssh.background("-M", "-o", f"ControlPath={server.home}/c", "-D", str(socks)):
        wait_for("the connection", lambda: is_listening(socks))
        script = f"set -e\nuname -sm\n({python(ECHO, str(port))} >/dev/null 2>&1 &)\necho started: $?\n"
        ended = ssh("bash -s", flags=control, stdin=script.encode())
        assert ended.stdout.split(b"\n")[1] == b"started: 0", ended
        wait_for("the server in the job", lambda: ask_when_there(socks, port) == b"HI!")
        long_lived = subprocess.Popen(
            [*ssh.command(*control), "echo up; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert long_lived.stdin is not None
        assert long_lived.stdout is not None
        assert long_lived.stdout.readline() == b"up\n"
        forward = ["-O", "forward", "-L", f"{local}:127.0.0.1:{port}"]
        subprocess.run(ssh.command(*control, *forward), check=True, capture_output=True)
        with socket.create_connection(("127.0.0.1", local), timeout=20) as idle:
            for number in range(20):
                assert ask(local, b"n%d" % number) == b"N%d!" % number
                long_lived.stdin.write(b"%d\n" % number)
                long_lived.stdin.flush()
                assert long_lived.stdout.readline() == b"%d\n" % number
            idle.sendall(b"still here")
            assert idle.recv(100) == b"STILL HERE"
        long_lived.communicate(timeout=20)
        assert long_lived.returncode == 0
        subprocess.run(ssh.command(*control, "-O", "exit"), check=True, capture_output=True)


def ask_when_there(socks: int, port: int) -> bytes | None:
    try:
        return ask_socks(socks, "localhost", port, b"hi")
    except ConnectionError:
        return None


def test_by_websocket(server: ServerProcess) -> None:
    ssh = started(server)
    ssh.token, registered = TOKEN, ssh.key
    ssh.key = make_key(server.home)
    data = os.urandom(3_000_000)
    assert ssh("cat", stdin=data).stdout == data, "the token is enough"
    assert ssh("echo hi; exit 5").returncode == 5

    def named(**limits: object) -> str:
        made: str = server.post("/api/users/tokens/create", {"name": os.urandom(4).hex(), **limits})["token"]
        return made

    server.post("/api/projects/create", {"project_name": "other"})
    ssh.token = named(projects=["main"])
    assert ssh("true").returncode == 0
    ssh.token = named(projects=["other"])
    ended = ssh("true", flags=("-v",))
    assert (ended.returncode, b"the token is not for this job" in ended.stderr) == (255, True)
    ssh.key = registered
    assert ssh("true").returncode == 0, "a key opens the job by its own right"
    soon = datetime.now(timezone.utc) + timedelta(seconds=3)
    ssh.key, ssh.token = make_key(server.home), named(expires_at=soon.isoformat())
    assert ssh("sleep 1000").returncode == 255, "it ends with its token"
    ssh.token = named(services_only=True)
    ended = ssh("true")
    assert (ended.returncode, b"403 Forbidden" in ended.stderr, b"services" in ended.stderr) == (255, True, True)
    ssh.token = "wrong"
    for _ in range(30):
        ended = ssh("true")
        assert ended.returncode == 255
        if b"429" in ended.stderr:
            break
    assert b"Retry-After" in ended.stderr
    with pytest.raises(ApiError, match="404"):
        server.call("GET", "/api/ssh")


def test_a_separate_proxy_may_be_the_only_way_in(make_server: Callable[..., ServerProcess]) -> None:
    server = make_server(DSTACK_SERVER_SSHPROXY_ENFORCED="1", DSTACK_SSHPROXY_API_TOKEN="secret").start()
    assert "Warning: DSTACK_SERVER_SSHPROXY_ENFORCED is ignored" in server.output
    server.stop()
    server.start(DSTACK_SERVER_SSHPROXY_ADDRESS="ssh.example:22")
    ssh = started(server)
    told = server.run("job")["jobs"][0]
    assert told["job_connection_info"]["ssh_door"] is None
    assert told["job_connection_info"]["sshproxy_hostname"] == "ssh.example"
    assert told["job_submissions"][-1]["job_provisioning_data"]["ssh_proxy"] is None
    only = b"SSH leads into jobs through ssh.example:22 only"
    for ssh.token in (None, TOKEN):
        ended = ssh("true")
        assert (ended.returncode, only in ended.stderr) == (255, True), ended.stderr


def test_live_logs_and_the_end_of_a_job(server: ServerProcess, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server.submit("job", ["echo first", f"while [ ! -e {gate} ]; do sleep 0.05; done", "echo last"])
    server.wait_run("job", "running")
    ssh = Ssh.of_run(server, "job")
    with ssh.forwarding(10999) as local:
        with socket.create_connection(("127.0.0.1", local), timeout=30) as connection:
            received = read_live(connection, "/logs_ws?start_time=2020-01-01T00:00:00%2B00:00")
            assert next(received) == b"first\n"
            gate.touch()
            assert b"".join(received) == b"last\n"
        server.wait_run("job", "done")
        with socket.create_connection(("127.0.0.1", local), timeout=30) as connection:
            assert b"".join(read_live(connection, "/logs_ws")) == b"first\nlast\n"
        assert b" 404 Not Found" in ask(local, b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 400 Bad Request" in ask(local, b"GET /logs_ws HTTP/1.1\r\nHost: x\r\n\r\n")
    ended = ssh("true")
    assert (ended.returncode, ended.stderr) == (255, b"dstack: the job does not run any more: it is done\r\n")


def read_live(connection: socket.socket, target: str) -> Iterator[bytes]:
    """Payloads of binary messages until the close frame."""
    lines = [f"GET {target} HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
    connection.sendall("\r\n".join(lines).encode())
    stream = connection.makefile("rb")
    assert b" 101 " in stream.readline()
    while stream.readline() != b"\r\n":
        pass
    while True:
        first, second = stream.read(2)
        length = int.from_bytes(stream.read({126: 2, 127: 8}[second]), "big") if second > 125 else second
        payload = stream.read(length)
        if first & 15 == 8:
            assert payload[:2] == b"\x03\xe8"
            return
        if first & 15 == 2:
            yield payload


def test_commands_files_and_ports_of_a_container(
    make_server: Callable[..., ServerProcess], docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    """Busybox only: nothing is needed in the image, not even for SFTP."""
    server = make_server(DOCKER_HOST=f"unix://{docker_daemon.socket}").start()
    small = {"cpu": "1..", "memory": "0.1GB..", "disk": "0.1GB.."}
    page = ["mkdir -p /www", "echo page > /www/index.html", "httpd -p 127.0.0.1:8000 -h /www"]
    ssh = started(server, "job", *page, image=docker_daemon.image, resources=small, env={"COLOUR": "blue"})
    ended = ssh("echo $COLOUR; id -un; exit 3")
    assert (ended.returncode, ended.stdout) == (3, b"blue\nroot\n")
    assert b"index.html" in ssh("ls /www", flags=("-tt",)).stdout
    data = os.urandom(1_000_000)
    (tmp_path / "data").write_bytes(data)
    ended = ssh.program("scp", *ssh.flags, str(tmp_path / "data"), f"{ssh.destination}:/tmp/data")
    assert ended.returncode == 0, ended.stderr
    assert ssh("cat /tmp/data").stdout == data
    with ssh.forwarding(8000) as local:
        answer = wait_for("the page", lambda: page_of(local))
        assert answer is not None
        assert answer.endswith(b"page\n")


def page_of(port: int) -> bytes | None:
    answer = ask(port, b"GET / HTTP/1.0\r\n\r\n")
    return answer if b" 200 OK" in answer else None
