"""The machine that the server runs on, as a backend: one instance that is always there (better B22).

Its agent is a process of its own that outlives the server and its jobs with it; it ends by itself once it
has nothing to do and nobody is connected.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dstack
from dstack.backends.base import InstanceAddress, InstanceRequest
from dstack.backends.registry import BackendContext
from dstack.core.backends import LOCAL, BackendType
from dstack.core.errors import BackendUnavailable, InvalidRequest
from dstack.core.instances import (
    Disk,
    Gpu,
    InstanceAvailability,
    InstanceOfferWithAvailability,
    InstanceType,
    Requirements,
    Resources,
)
from dstack.core.resources import CPUArchitecture

REGION = LOCAL
START_TIMEOUT_S = 10.0
DETECT_TIMEOUT_S = 60.0
IDLE_EXIT_S = 10
PASSED_ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "TMPDIR")
"""All the agent gets of the server's environment: jobs inherit from the agent, and may not see secrets."""


class LocalBackend:
    """See the module. `folder` holds the agent's state and socket."""

    type = LOCAL
    wire_type = BackendType.REMOTE.value
    volumes = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._starting = asyncio.Lock()
        self._gpus: list[Gpu] | None = None

    @property
    def agent_socket(self) -> Path:
        return self.folder / "agent.sock"

    async def list_offers(self, requirements: Requirements | None) -> list[InstanceOfferWithAvailability]:
        """This machine, free of charge. Whether it satisfies the requirements is for the planner to say."""
        return [await asyncio.to_thread(self._offer)]

    def _offer(self) -> InstanceOfferWithAvailability:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._gpus is None:
            self._gpus = detect_gpus()
        return InstanceOfferWithAvailability(
            backend=BackendType.REMOTE,
            instance=InstanceType(name="local", resources=machine_resources(self.folder, self._gpus)),
            region=REGION,
            price=0.0,
            availability=InstanceAvailability.AVAILABLE,
        )

    async def ensure_instance(self, request: InstanceRequest) -> InstanceAddress:
        """Starts the agent unless it answers. Raises BackendUnavailable with what the agent said."""
        async with self._starting:
            if not await self._answers():
                await self._start()
        return InstanceAddress(
            backend_id=request.name,
            hostname="127.0.0.1",
            agent_socket=str(self.agent_socket),
            internal_ip="127.0.0.1",
        )

    async def ensure_terminated(self, name: str) -> bool:
        """The machine stays; its agent ends by itself when it has nothing left to do."""
        return True

    async def _answers(self) -> bool:
        return await asyncio.to_thread(can_connect, self.agent_socket)

    async def _start(self) -> None:
        process = await asyncio.to_thread(self._spawn)
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while not await self._answers():
            if process.poll() not in (None, 3):  # 3: another one holds the folder and is about to answer
                raise BackendUnavailable(f"The local agent ended at its start: {self._last_words()}")
            if asyncio.get_running_loop().time() > deadline:
                raise BackendUnavailable(f"The local agent does not answer on {self.agent_socket}")
            await asyncio.sleep(0.01)
        _reap_later(process)

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [sys.executable, "-m", "dstack.agent", "--dir", str(self.folder)]
        command += ["--exit-when-idle", str(IDLE_EXIT_S), *docker_arguments(os.environ)]
        with (self.folder / "agent.out").open("wb") as output:
            return subprocess.Popen(
                command,
                env=agent_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
            )

    def _last_words(self) -> str:
        lines = (self.folder / "agent.out").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _reap_later(process: subprocess.Popen[bytes]) -> None:
    """Waits for the child in the background, so that an agent that ends leaves no zombie."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        process.poll()

    loop.add_reader(descriptor, ended)


def docker_arguments(environ: Mapping[str, str]) -> list[str]:
    """Has the agent use the Docker of `DOCKER_HOST`, when that is a Unix socket: the agent speaks no other way."""
    scheme, _, path = environ.get("DOCKER_HOST", "").partition("://")
    return ["--docker-socket", path] if scheme == "unix" and path else []


def can_connect(path: Path) -> bool:
    """Whether somebody listens on that Unix socket. The path may be longer than an address may be: it is
    reached by way of its folder's descriptor."""
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def agent_environment() -> dict[str, str]:
    """What a process of the agent gets of ours."""
    environment = {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}
    return {**environment, "PYTHONPATH": str(Path(dstack.__file__).parents[1])}


def detect_gpus() -> list[Gpu]:
    """What the vendors' tools on this machine tell, asked as the agent asks them. Raises BackendUnavailable."""
    command = [sys.executable, "-m", "dstack.agent.gpu"]
    try:
        done = subprocess.run(
            command, env=agent_environment(), capture_output=True, text=True, check=True, timeout=DETECT_TIMEOUT_S
        )
        found = json.loads(done.stdout)["gpus"]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BackendUnavailable(f"The GPUs of this machine cannot be told: {error}") from error
    return [Gpu.model_validate(gpu, extra="ignore") for gpu in found]


def machine_resources(folder: Path, gpus: list[Gpu]) -> Resources:
    """What this machine has."""
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    arm = platform.machine().lower() in ("aarch64", "arm64")
    return Resources(
        cpus=os.cpu_count() or 1,
        memory_mib=memory_mib,
        gpus=gpus,
        spot=False,
        disk=Disk(size_mib=shutil.disk_usage(folder).total // 2**20),
        cpu_arch=CPUArchitecture.ARM if arm else CPUArchitecture.X86,
    )


def create(settings: Mapping[str, Any], context: BackendContext) -> LocalBackend:
    """Has no settings."""
    if settings:
        raise InvalidRequest(f"The local backend has no settings; remove {', '.join(sorted(settings))}")
    return LocalBackend(context.hosts_dir / "local")
