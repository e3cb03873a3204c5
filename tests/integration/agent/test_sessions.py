"""Programs beside a running task, and connections into it: one suite over processes and containers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from tests.fixtures.docker import DockerDaemon
from tests.fixtures.ports import take_free_port
from tests.integration.agent.harness import AgentProcess, until

from dstack.agent.protocol import (
    ENDED,
    ERROR_OUTPUT,
    OUTPUT,
    RUNNING,
    ConnectRequest,
    ExecExit,
    ExecRequest,
    StopRequest,
    TaskSpec,
)
from dstack.core.errors import Unreachable
from dstack.server.hosts.agent_client import AgentRefused, TaskUnknown
from dstack.server.hosts.sessions import ExecSession

RELAY = Path(__file__).parent / "relay.py"
TERMINAL = {"term": "xterm-test", "columns": 90, "rows": 31}


class Host(AgentProcess):
    """An agent with one task, which runs; `nothing` is a number that marks the task's own processes."""

    def __init__(self, folder: Path, daemon: DockerDaemon | None) -> None:
        super().__init__(folder)
        self.daemon = daemon
        self.task = self.spec("exec sleep 1000", env={"GIVEN": "by the task"})

    async def start(self, *arguments: str) -> None:
        socket = str(self.daemon.socket) if self.daemon else "/nowhere/docker.sock"
        await super().start("--docker-socket", socket, *arguments)

    def spec(self, text: str, **fields: object) -> TaskSpec:
        executor = "container" if self.daemon else "process"
        image = self.daemon.image if self.daemon else None
        data = {"id": str(uuid.uuid4()), "name": "t", "commands": ["/bin/sh", "-c", text], "image": image}
        return TaskSpec.from_json({**data, "executor": executor, **fields})

    async def run(self, task: TaskSpec) -> TaskSpec:
        await self.client.put_task(task)

        async def runs() -> bool:
            state = await self.client.get_task(task.id)
            assert state.status != ENDED, state
            return state.status == RUNNING

        await until(runs)
        return task

    def containers(self) -> str:
        """The id of the task's container."""
        assert self.daemon
        return self.daemon.run("ps", "-q", "--filter", f"label=dstack.task={self.task.id}")

    async def exec(self, command: str | None = None, **fields: object) -> ExecSession:
        return await self.client.exec(self.task.id, ExecRequest.from_json({"command": command, **fields}))

    async def result(self, command: str, given: bytes = b"", **fields: object) -> tuple[bytes, bytes, ExecExit]:
        """(output, error output, exit) of a command with this input."""
        session = await self.exec(command, **fields)
        with contextlib.closing(session):
            await session.send_input(given)
            await session.end_input()
            found = {OUTPUT: b"", ERROR_OUTPUT: b""}
            async for kind, data in session.output():
                found[kind] += data
        assert session.exit
        return found[OUTPUT], found[ERROR_OUTPUT], session.exit


@pytest.fixture(params=["process", "container"])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Host]:
    daemon = request.getfixturevalue("docker_daemon") if request.param == "container" else None
    running = Host(tmp_path, daemon)
    await running.start()
    await running.run(running.task)
    yield running
    if running.process is None or running.process.poll() is not None:
        await running.start()
    for task in await running.client.list_tasks():
        await running.client.stop_task(task.id, StopRequest(grace_seconds=0))
        await running.ended(task.id)
        await running.client.delete_task(task.id)
    await running.clean_up()
    assert "Traceback" not in (tmp_path / "agent.err").read_text()


class Typist:
    """Somebody at a terminal."""

    def __init__(self, session: ExecSession) -> None:
        self.session = session
        self.seen = b""
        self._output = session.output()

    async def type(self, text: str) -> None:
        await self.session.send_input(text.encode())

    async def see(self, text: str) -> None:
        """Waits until the terminal has shown it, and forgets all up to there."""
        while text.encode() not in self.seen:
            self.seen += (await anext(self._output)).data
        self.seen = self.seen.partition(text.encode())[2]

    async def exit(self) -> ExecExit:
        async for _ in self._output:
            pass
        assert self.session.exit
        return self.session.exit


def alive(text: str) -> list[int]:
    """Processes whose command line has this argument."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if text in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def unique_number() -> str:
    """One that no other process has in its command line; also a long time in seconds."""
    return f"1{uuid.uuid4().int % 10**9:09}"


async def appear(text: str) -> list[int]:
    async def are_there() -> bool:
        return bool(alive(text))

    await until(are_there)
    return alive(text)


async def vanish(text: str) -> None:
    async def are_gone() -> bool:
        return not alive(text)

    await until(are_gone)


async def test_a_command_has_the_tasks_environment_and_its_own_streams(host: Host) -> None:
    text = 'echo "$GIVEN, $MORE"; pwd; echo wrong >&2; cat; exit 7'
    output, errors, ended = await host.result(text, b"typed", env={"MORE": "and more"})
    state = await host.client.get_task(host.task.id)
    assert output.decode() == f"by the task, and more\n{state.working_dir}\ntyped"
    assert errors == b"wrong\n"
    assert ended == ExecExit(exit_status=7)


async def test_a_terminal_has_a_size_and_takes_ctrl_c(host: Host) -> None:
    with contextlib.closing(await host.exec(terminal=TERMINAL)) as session:
        typist = Typist(session)
        await typist.type("stty size; echo $TERM\n")
        await typist.see("31 90\r\nxterm-test\r\n")
        await session.resize(101, 43)
        await typist.type('stty size; sh -c \'trap "exit 6" INT; echo r""eady; while :; do sleep 0.05; done\'\n')
        await typist.see("43 101\r\nready\r\n")
        await typist.type("\x03")
        await typist.see("^C")
        await typist.type("exit 5\n")
        assert await typist.exit() == ExecExit(exit_status=5)


async def test_the_end_of_input_is_that_of_a_terminal(host: Host) -> None:
    with contextlib.closing(await host.exec("cat; exit 4", terminal=TERMINAL)) as session:
        typist = Typist(session)
        await typist.type("line\n")
        await typist.see("line\r\nline\r\n")
        await session.end_input()
        assert await typist.exit() == ExecExit(exit_status=4)


async def test_a_signal_reaches_the_program(host: Host) -> None:
    for name, told in (("TERM", ExecExit(signal="TERM")), ("USR1", ExecExit(exit_status=9))):
        text = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done"
        with contextlib.closing(await host.exec(text)) as session:
            typist = Typist(session)
            await typist.see("ready")
            await session.send_signal(name)
            ended = await typist.exit()
        assert ended == told or (host.daemon and ended.exit_status == 143)


async def test_a_client_that_goes_away_ends_what_it_started(host: Host) -> None:
    for terminal in (None, TERMINAL):
        seconds = unique_number()
        text = f"sleep {seconds} & (trap : HUP; sleep {seconds}); sleep {seconds}"
        session = await host.exec(text, terminal=terminal)
        await appear(seconds)
        session.close()
        await vanish(seconds)


async def test_what_ignores_the_hangup_stays_until_the_task_ends(host: Host) -> None:
    seconds = unique_number()
    session = await host.exec(f"nohup sleep {seconds} >/dev/null 2>&1 & setsid sleep {seconds}")
    await appear(seconds)
    session.close()
    await asyncio.sleep(0.1)
    assert alive(seconds)
    await host.client.stop_task(host.task.id, StopRequest(grace_seconds=0))
    await host.ended(host.task.id)
    await vanish(seconds)


async def test_a_connection_reaches_the_loopback_of_the_task(host: Host, tmp_path: Path) -> None:
    port = take_free_port()
    serving = "mkdir {0}; echo found > {0}/index.html; exec busybox httpd -f -p 127.0.0.1:{1} -h {0}"
    with contextlib.closing(await host.exec(serving.format(f"/tmp/served-{port}", port))):
        answer = b""
        while not answer:
            with contextlib.suppress(AgentRefused):
                reader, writer = await host.client.connect(host.task.id, ConnectRequest(port=port))
                writer.write(b"GET /index.html HTTP/1.0\r\n\r\n")
                writer.write_eof()
                answer = await reader.read(-1)
                writer.close()
        assert answer.endswith(b"\r\n\r\nfound\n")
    with pytest.raises(
        AgentRefused, match=r"nothing listens on port 1 of the task \(127.0.0.1: Connection refused"
    ) as refused:
        await host.client.connect(host.task.id, ConnectRequest(port=1))
    assert refused.value.status == 502


async def test_what_cannot_be_entered_says_so(host: Host) -> None:
    with pytest.raises(TaskUnknown):
        await host.client.exec("nothing", ExecRequest("true"))
    with pytest.raises(AgentRefused, match="`port` has to be a number from 1 to 65535, not 0"):
        await host.client.connect(host.task.id, ConnectRequest(port=0))
    with pytest.raises(AgentRefused, match="the exec request is malformed: command, env"):
        await host.exec(7, env={"A": 1})  # type: ignore[arg-type]
    await host.client.stop_task(host.task.id, StopRequest(grace_seconds=0))
    await host.ended(host.task.id)
    with pytest.raises(AgentRefused, match="the task is ended: only a running one can be entered") as refused:
        await host.exec("true")
    assert refused.value.status == 409


async def relay(host: Host, folder: Path, **fields: object) -> tuple[asyncio.Server, str]:
    """A Unix socket behind which each connection is an SFTP session, and the `sftp -D` command that uses it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = await host.exec(None, sftp=True, **fields)

        async def give() -> None:
            while data := await reader.read(65536):
                await session.send_input(data)
            await session.end_input()

        giving = asyncio.ensure_future(give())
        async for kind, data in session.output():
            assert kind == OUTPUT, data
            writer.write(data)
            await writer.drain()
        giving.cancel()
        session.close()
        writer.close()

    path = folder / "sftp.sock"
    return await asyncio.start_unix_server(serve, str(path)), f"{sys.executable} {RELAY} {path}"


async def sftp(host: Host, folder: Path, batch: str, **fields: object) -> str:
    """Output of OpenSSH's client, which runs these commands in `folder`."""
    server, command = await relay(host, host.folder, **fields)
    async with server:
        client = await asyncio.create_subprocess_exec(
            *("sftp", "-D", command, "-b", "-"),
            cwd=folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await client.communicate(batch.encode())
    return output.decode()


BATCH = """\
put big.bin there.bin
get there.bin back.bin
mkdir folder
rename there.bin folder/moved.bin
symlink folder/moved.bin link
chmod 640 folder/moved.bin
ln folder/moved.bin hard
ls -l folder
df
-get missing
-rmdir folder
-mkdir folder
-get /dev/tty here
rm hard
rm link
rm folder/moved.bin
rmdir folder
ls
"""


async def test_opensshs_sftp_works(host: Host, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(os.urandom(3_000_000))
    told = await sftp(host, tmp_path, BATCH)
    assert (tmp_path / "back.bin").read_bytes() == (tmp_path / "big.bin").read_bytes()
    assert re.search(r"-rw-r----- +2 root +root +3000000 .* moved.bin", told)
    assert "missing" in told
    assert told.count("Failure") == 2
    assert "not a regular file" in told
    assert "there.bin" not in told.rpartition("sftp> ls\n")[2]


async def test_sftp_is_the_tasks_user_in_the_tasks_root(host: Host, tmp_path: Path) -> None:
    state = await host.client.get_task(host.task.id)
    told = await sftp(host, tmp_path, "pwd\n")
    assert f"Remote working directory: {state.working_dir}\n" in told
    await host.result("chmod 1777 /tmp")
    made = f"/tmp/made-{host.task.id}"
    batch = f"mkdir {made}\nput {RELAY} {made}/x\nls -l {made}\n-mkdir /etc/made\nrm {made}/x\nrmdir {made}\n"
    told = await sftp(host, tmp_path, batch, user="1000")
    listed = re.search(r"\n-rw-r--r-- +1 (\S+) .* x\s", told)
    assert listed, told
    assert listed[1] != "root"
    assert 'remote mkdir "/etc/made": Permission denied' in told
    if host.daemon:
        told = await sftp(host, tmp_path, f"-ls {tmp_path}\n-ls ../../../../../..{tmp_path}\nls /\n")
        assert told.count("not found") == 2
        assert "/bin" in told


async def test_devices_of_a_container_are_not_opened(host: Host, tmp_path: Path) -> None:
    if host.daemon is None:
        pytest.skip("a process sees the host's devices with its own rights")
    _, errors, _ = await host.result("mknod /disk b 7 0; mkfifo /pipe")
    assert errors == b""
    told = await sftp(host, RELAY.parent, "-put relay.py /disk\n-put relay.py /pipe\nput relay.py /dev/null\n")
    assert told.count("dest open") == 2, told


async def test_a_socket_among_the_tasks_files_is_reached(host: Host, tmp_path: Path) -> None:
    path = f"{tmp_path}/served.sock"
    if host.daemon:
        pid = host.daemon.run("inspect", "-f", "{{.State.Pid}}", host.containers())
        await host.result(f"mkdir -p {tmp_path}")
        listening: asyncio.Server = await asyncio.start_unix_server(answer, f"/proc/{pid}/root{path}")
    else:
        listening = await asyncio.start_unix_server(answer, path)
    async with listening:
        reader, writer = await host.client.connect(host.task.id, ConnectRequest(socket=path))
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read(-1) == b"noitseuq"
        writer.close()
    with pytest.raises(AgentRefused, match=r"/missing of the task cannot be reached: .*No such file") as refused:
        await host.client.connect(host.task.id, ConnectRequest(socket="/missing"))
    assert refused.value.status == 502


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads to the end, then writes it reversed: only a half-closed connection gets that."""
    data = await reader.read(-1)
    writer.write(data[::-1])
    writer.close()


async def test_large_transfers_arrive_whole(host: Host) -> None:
    size = 20_000_000 if host.daemon is None else 3_000_000
    given = os.urandom(size)
    output, _, ended = await receiving(host, "cat; exit 2", given)
    assert (output == given, ended) == (True, ExecExit(exit_status=2))


async def receiving(host: Host, command: str, given: bytes) -> tuple[bytes, bytes, ExecExit]:
    """As `Host.result`, but the output is read while the input is sent."""
    with contextlib.closing(await host.exec(command)) as session:

        async def give() -> None:
            await session.send_input(given)
            await session.end_input()

        giving = asyncio.ensure_future(give())
        output = b"".join([data async for _, data in session.output()])
        await giving
        assert session.exit
        return output, b"", session.exit


async def test_a_client_that_reads_nothing_stops_the_program_and_fills_no_memory(host: Host) -> None:
    agent = psutil.Process(host.pid)
    word = unique_number()
    with contextlib.closing(await host.exec(f"exec cat /dev/zero {word}")) as session:
        reading = session.output()
        await anext(reading)
        before = agent.memory_info().rss
        [program] = await appear(word)

        async def stands_still() -> bool:
            first = psutil.Process(program).cpu_times()
            await asyncio.sleep(0.2)
            return psutil.Process(program).cpu_times() == first

        await until(stands_still)
        assert agent.memory_info().rss - before < 8 * 1024**2


async def test_a_killed_agent_leaves_no_program_behind(host: Host) -> None:
    seconds = unique_number()
    session = await host.exec(f"sleep {seconds}")
    await appear(seconds)
    host.end()
    with pytest.raises(Unreachable):
        async for _ in session.output():
            pass
    session.close()
    if host.daemon:  # Docker's programs need an agent to end them
        await host.start()
    await vanish(seconds)


async def test_a_program_ends_with_its_task(host: Host) -> None:
    seconds = unique_number()
    with contextlib.closing(await host.exec(f"sleep {seconds}")) as session:
        await appear(seconds)
        await host.client.stop_task(host.task.id, StopRequest(grace_seconds=0))
        async for _ in session.output():
            pass
        assert session.exit in (ExecExit(signal="HUP"), ExecExit(signal="KILL"), ExecExit(exit_status=137))
    await host.ended(host.task.id)
    await vanish(seconds)


async def test_a_protocol_takes_a_connection_over(host: Host, tmp_path: Path) -> None:
    if host.daemon:
        pytest.skip("it is the same to the client")
    received, ended = bytearray(), asyncio.Event()

    class Collector(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"x" * 1_000_000)
            transport.write_eof()

        def data_received(self, data: bytes) -> None:
            received.extend(data)

        def connection_lost(self, error: Exception | None) -> None:
            ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await host.client.connect_protocol(host.task.id, ConnectRequest(port=port), Collector())
        await ended.wait()
    assert received == b"x" * 1_000_000
    with pytest.raises(AgentRefused, match="nothing listens"):
        await host.client.connect_protocol(host.task.id, ConnectRequest(port=1), Collector())


class NobodysHost(Host):
    """Its agent may use Docker, but is not root."""

    def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        python = shutil.which("python3", path="/usr/bin")  # one that others than the tests' user may run too
        if python is None:
            pytest.skip("needs a Python in /usr/bin")
        with open(self.folder / "agent.err", "ab") as errors:
            return subprocess.Popen(
                [python, *command[1:]],
                env=environment,
                stdout=errors,
                stderr=errors,
                user=65534,
                group=65534,
                extra_groups=[],
            )


@pytest.fixture
async def nobodys_host(docker_daemon: DockerDaemon) -> AsyncIterator[Host]:
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        os.chown(folder, 65534, 65534)
        docker_daemon.socket.parent.chmod(0o711)
        docker_daemon.socket.chmod(0o666)
        running = NobodysHost(Path(folder), docker_daemon)
        await running.start()
        await running.run(running.task)
        yield running
        await running.client.stop_task(running.task.id, StopRequest(grace_seconds=0))
        await running.ended(running.task.id)
        await running.client.delete_task(running.task.id)
        await running.clean_up()


async def test_an_agent_that_is_not_root_enters_through_docker(nobodys_host: Host) -> None:
    host, seconds = nobodys_host, unique_number()
    session = await host.exec(f"sleep {seconds}")
    await appear(seconds)
    session.close()
    await vanish(seconds)
    _, errors, ended = await host.result("", sftp=True)
    assert (ended.exit_status, b"the image has no sftp-server of its own" in errors) == (1, True)
    with contextlib.closing(await host.exec("cd /bin; exec busybox httpd -f -p 8080")):
        answer = b""
        while not answer:
            with contextlib.suppress(AgentRefused):
                reader, writer = await host.client.connect(host.task.id, ConnectRequest(port=8080))
                writer.write(b"GET /missing HTTP/1.0\r\n\r\n")
                answer = await reader.read(-1)
                writer.close()
        assert b"404 Not Found" in answer
    with pytest.raises(AgentRefused, match="by an agent that runs as root only"):
        await host.client.connect(host.task.id, ConnectRequest(socket="/x"))
