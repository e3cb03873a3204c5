"""Programs beside a running task, and connections into it: one suite over processes and containers."""

from __future__ import annotations

import asyncio
import contextlib
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
from dstack.server.hosts.agent_client import AgentRefused, TaskUnknown
from dstack.server.hosts.sessions import ExecSession

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


def unique_sleep() -> str:
    """A number of seconds that no other process sleeps."""
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
        seconds = unique_sleep()
        text = f"sleep {seconds} & (trap : HUP; sleep {seconds}); sleep {seconds}"
        session = await host.exec(text, terminal=terminal)
        await appear(seconds)
        session.close()
        await vanish(seconds)


async def test_what_ignores_the_hangup_stays_until_the_task_ends(host: Host) -> None:
    seconds = unique_sleep()
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
