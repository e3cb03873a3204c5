"""What the server and a host agent say to each other. The only part of the agent that others may import.

HTTP/1.1 with JSON bodies over a Unix socket (``agent.sock`` in the agent's folder). Everything is
idempotent: repeating a call after a lost answer changes nothing.

====== ================================== ==========================================================
method path                               meaning
====== ================================== ==========================================================
GET    /v1/info                           ``AgentInfo``
GET    /v1/tasks                          ``{"tasks": [TaskState]}``
PUT    /v1/tasks/{id}                     body ``TaskSpec``; records it, then starts it; ``TaskState``.
                                          Repeating it answers the present state; another spec: 409
GET    /v1/tasks/{id}                     ``TaskState``; 404
POST   /v1/tasks/{id}/stop                body ``StopRequest``; ``TaskState``; an ended task: no effect.
                                          An unknown id is recorded as ended, so that a late PUT of it
                                          starts nothing
DELETE /v1/tasks/{id}                     forgets an ended task and its logs; 409 while it lives;
                                          an unknown id: 204
PUT    /v1/tasks/{id}/files/{name}        raw body: an uploaded archive, code diff or credentials that
                                          the spec names; before the PUT of the task, else 409
GET    /v1/tasks/{id}/logs                ``?offset=N&follow=0|1``; frames (below) from that offset on;
                                          with ``follow=1`` the body ends only when the task has ended
                                          and all of it was sent
POST   /v1/tasks/{id}/logs/acknowledge    body ``{"offset": N}``: everything before N is stored, the
                                          host may drop it
GET    /v1/tasks/{id}/metrics             ``TaskMetrics`` of this moment; 409 when the task does not run
POST   /v1/tasks/{id}/exec                body ``ExecRequest``, upgraded (below) to session frames; 409 when
                                          the task does not run
POST   /v1/tasks/{id}/connect             body ``ConnectRequest``, upgraded to the bytes of a connection
                                          into the task's network, each direction ended on its own;
                                          409 when the task does not run, 502 when nothing listens there
GET    /v1/events                         ``?after=SEQ``; NDJSON, one ``Event`` a line, without end:
                                          the newest state of every task that changed after SEQ, then
                                          each change as it happens, and how the host is, first and when
                                          that changes; a ``ping`` every 15 s of silence
====== ================================== ==========================================================

Errors are ``{"error": text}`` with 400 (malformed), 404 (unknown), 409 (conflict), 410 (log dropped), 413, 500,
502 (no connection), 507 (disk full).

An upgraded call asks with ``Connection: Upgrade`` and ``Upgrade: dstack-stream``; 101 answers it, and from then
on the connection carries the stream in both directions. A client that goes away ends what it started (SIGHUP).

Session frame: 1 byte kind, 4 bytes big-endian payload length, payload (at most ``MAX_FRAME_BYTES``). The client
sends ``INPUT``, ``INPUT_END`` (empty), ``RESIZE`` (JSON ``{columns, rows}``) and ``SIGNAL`` (a name without SIG,
RFC 4254 section 6.9); the agent sends ``OUTPUT``, ``ERROR_OUTPUT`` and, last, ``EXIT`` (JSON ``ExecExit``).

Log frame: 8 bytes big-endian microseconds since the epoch, 4 bytes big-endian payload length, payload
(raw output, at most ``MAX_FRAME_BYTES``, cut after a newline where there is one). An offset counts
bytes of this framed stream, so it only ever points at the start of a frame.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, Dict, Iterator, List, Optional, Tuple, Type, TypeVar

PROTOCOL_VERSION = 1
FRAME_HEADER = struct.Struct(">QI")
MAX_FRAME_BYTES = 32 * 1024

PENDING = "pending"
PREPARING = "preparing"
PULLING = "pulling"
CREATING = "creating"
RUNNING = "running"
ENDED = "ended"
TASK_STATUSES = (PENDING, PREPARING, PULLING, CREATING, RUNNING, ENDED)

# Why a task ended (`TaskState.reason`); the names are those of the job termination reasons
# (reference: lifecycle, section 4), so the server needs no table of its own.
DONE = "done_by_runner"
EXITED_WITH_ERROR = "container_exited_with_error"
CREATING_FAILED = "creating_container_error"
EXECUTOR_ERROR = "executor_error"
PORTS_BINDING_FAILED = "ports_binding_failed"
MAX_DURATION_EXCEEDED = "max_duration_exceeded"
STOPPED = "terminated_by_server"

UPGRADE_PROTOCOL = "dstack-stream"
SESSION_HEADER = struct.Struct(">BI")
INPUT = 0
INPUT_END = 1
RESIZE = 2
SIGNAL = 3
OUTPUT = 4
ERROR_OUTPUT = 5
EXIT = 6

T = TypeVar("T", bound="_Message")


@dataclasses.dataclass(frozen=True)
class _Message:
    """A JSON object; unknown keys are ignored so that either side may be newer."""

    def to_json(self) -> Dict[str, Any]:
        """A plain dictionary, nested messages included."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls: Type[T], data: Dict[str, Any]) -> T:
        """Raises TypeError when a required key is missing."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


@dataclasses.dataclass(frozen=True)
class Mount(_Message):
    host_path: str
    path: str
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Port(_Message):
    """A port of the task and where it can be reached on the host's loopback."""

    container: int
    host: int


@dataclasses.dataclass(frozen=True)
class RepoSpec(_Message):
    """A Git repository that the agent clones into `TaskSpec.repo_dir`."""

    clone_url: str
    branch: Optional[str] = None
    hash: Optional[str] = None
    single_branch: bool = True
    if_exists: str = "error"
    """When the folder is not empty: `error`, or `skip` to leave it as it is."""
    config_name: Optional[str] = None
    config_email: Optional[str] = None
    diff: str = ""
    """Name of an uploaded file with changes for `git apply`; empty: none."""
    credentials: str = ""
    """Name of an uploaded file with `RepoCredentials` as JSON, removed before the start; empty: none."""


@dataclasses.dataclass(frozen=True)
class RepoCredentials(_Message):
    """How to clone. Never part of a `TaskSpec`, which stays on the host for as long as the task is known."""

    private_key: Optional[str] = None
    oauth_token: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class NodesSsh(_Message):
    """How this task and the other nodes of its replica reach each other by SSH, with one key pair for all."""

    key: str
    """Name of the uploaded file with the private key, removed once the task runs."""
    public_key: str
    port: int
    """That each node's `sshd` listens on."""
    addresses: List[str]
    """Of all nodes."""
    listen: str = ""
    """The address of this node where it shares a machine with others; empty: all of the host's."""


@dataclasses.dataclass(frozen=True)
class TaskSpec(_Message):
    """What to run. `id` is the job submission's UUID."""

    id: str
    name: str
    executor: str
    """`process`, `container` or `simulated`."""
    commands: List[str]
    """argv, in place of an image's own entrypoint and command, which run where the list is empty."""
    env: Dict[str, str] = dataclasses.field(default_factory=dict)
    working_dir: Optional[str] = None
    user: Optional[str] = None
    image: Optional[str] = None
    registry_username: str = ""
    registry_password: str = ""
    privileged: bool = False
    network_mode: str = "bridge"
    gpu: int = 0
    """How many GPUs; -1 all."""
    cpu: float = 0
    """Limit in cores; 0 none. A process has it where the agent can limit processes (`AgentInfo.limits_error`)."""
    memory_bytes: int = 0
    """The same of its memory."""
    shm_size_bytes: int = 0
    mounts: List[Dict[str, Any]] = dataclasses.field(default_factory=list)
    ports: List[int] = dataclasses.field(default_factory=list)
    """Ports the task listens on; with `bridge` each is published on a free port of the host's loopback. A process
    keeps the port where that is free; else it is moved to another one (see `executors.ports`)."""
    max_duration_seconds: Optional[int] = None
    stop_grace_seconds: float = 10
    """Between SIGINT and SIGKILL; may be years."""
    files: List[Dict[str, str]] = dataclasses.field(default_factory=list)
    """`{"name", "path"}` of uploaded archives: what is at an archive's root becomes `path`, which is relative to
    the working directory (or, as `~/…`, to the home of a process's user)."""
    repo: Optional[Dict[str, Any]] = None
    """`RepoSpec`: what is cloned before the files are unpacked."""
    repo_dir: Optional[str] = None
    """`DSTACK_REPO_DIR`, relative to the working directory, which a process gets made absolute."""
    python: Optional[str] = None
    """A process gets a virtual environment of this version, such as `3.12`."""
    nvcc: bool = False
    """A process needs the CUDA compiler of the host."""
    hostfile: str = ""
    """Content of the file that `DSTACK_MPI_HOSTFILE` names."""
    ssh: Optional[Dict[str, Any]] = None
    """`NodesSsh`, for one of several nodes; nothing fails where it cannot be had, but the log says so."""
    simulation: Dict[str, Any] = dataclasses.field(default_factory=dict)
    """For the `simulated` executor: `duration_seconds`, `exit_status`, `log_lines`, `start_error`, …"""


@dataclasses.dataclass(frozen=True)
class StopRequest(_Message):
    reason: str = STOPPED
    message: str = ""
    grace_seconds: Optional[float] = None
    """None: the spec's; 0: killed at once."""


@dataclasses.dataclass(frozen=True)
class TaskState(_Message):
    """All that is known of a task. `seq` grows with each change on this agent."""

    id: str
    seq: int
    status: str
    reason: Optional[str] = None
    message: str = ""
    exit_status: Optional[int] = None
    ports: List[Dict[str, int]] = dataclasses.field(default_factory=list)
    working_dir: Optional[str] = None
    username: Optional[str] = None
    gpu_ids: List[str] = dataclasses.field(default_factory=list)
    pull_progress: Optional[Dict[str, Any]] = None
    """`{downloaded_bytes, extracted_bytes, total_bytes, is_total_bytes_final}` while pulling."""
    created_at: float = 0
    started_at: Optional[float] = None
    ended_at: Optional[float] = None
    log_start: int = 0
    """Offset of the oldest frame still on the host."""
    log_end: int = 0
    log_acknowledged: int = 0


@dataclasses.dataclass(frozen=True)
class GpuMetrics(_Message):
    """What one accelerator is doing; 0 where the vendor's tool does not tell."""

    gpu_memory_usage_bytes: int
    gpu_util_percent: int


@dataclasses.dataclass(frozen=True)
class TaskMetrics(_Message):
    """What a running task uses at this moment by the host's clock."""

    timestamp_micro: int
    cpu_usage_micro: int
    """CPU time since the start, in microseconds, over all cores and processes."""
    memory_usage_bytes: int
    memory_working_set_bytes: int
    """Without what the kernel can take back at once: files that are only cached."""
    gpus: List[Dict[str, Any]] = dataclasses.field(default_factory=list)
    """`GpuMetrics` of the task's accelerators, in the order of `TaskState.gpu_ids`."""


@dataclasses.dataclass(frozen=True)
class ExecRequest(_Message):
    """What to run beside a running task: in its container or as its user, in its environment and folder."""

    command: Optional[str] = None
    """For the user's shell (`bash`, else `sh`); None: that shell itself, as a login shell."""
    env: Dict[str, str] = dataclasses.field(default_factory=dict)
    """Added to the task's."""
    terminal: Optional[Dict[str, Any]] = None
    """`{term, columns, rows}`; None: pipes, with the error output apart."""
    user: Optional[str] = None
    """None: the task's."""
    sftp: bool = False
    """Serve SFTP version 3 on input and output, in the task's files; nothing is needed in the image."""


@dataclasses.dataclass(frozen=True)
class ExecExit(_Message):
    """How an exec ended: an exit status, or the signal (a name without SIG) that killed it."""

    exit_status: Optional[int] = None
    signal: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class ConnectRequest(_Message):
    """Where to: a TCP port on the loopback of the task's network, or a Unix socket among its files."""

    port: int = 0
    socket: str = ""


@dataclasses.dataclass(frozen=True)
class Event(_Message):
    """One line of the event stream: `type` is `task` (then `task` is a `TaskState`), `health` or `ping`."""

    type: str
    seq: int
    task: Optional[Dict[str, Any]] = None
    health: Optional[Dict[str, Any]] = None
    """How the host is: `{status, problems: [{status, message}]}`; `healthy`, `warning` or `failure`."""


@dataclasses.dataclass(frozen=True)
class AgentInfo(_Message):
    """Who answers and on what host."""

    agent_version: str
    protocol: int
    agent_id: str
    """Made once per agent folder; another id on the same host means that its tasks are gone."""
    pid: int
    seq: int
    executors: List[str]
    container_error: str = ""
    """Why there is no `container` executor, in words for the user; empty where there is one."""
    limits_error: str = ""
    """What of a task does not limit processes and why, in words for the user; empty: all does."""
    archive_sha256: str = ""
    """Of the file that the agent runs from; empty for one that runs from its sources."""
    clock: float = 0
    """The host's clock as it answers, in seconds since the epoch; 0 from agents that do not tell."""
    host: Dict[str, Any] = dataclasses.field(default_factory=dict)
    """`hostname, arch, cpus, memory_bytes, disk_bytes, addresses, gpus: [{vendor, name, memory_mib}],
    gpu_driver_version`"""


def encode_frame(timestamp_us: int, payload: bytes) -> bytes:
    """One frame of the log stream."""
    return FRAME_HEADER.pack(timestamp_us, len(payload)) + payload


def encode_frames(timestamp_us: int, output: bytes) -> bytes:
    """Output of one moment as frames, each cut after the last newline that fits into it, where there is one."""
    parts: List[bytes] = []
    start = 0
    while start < len(output):
        end = start + MAX_FRAME_BYTES
        if end < len(output):
            end = output.rfind(b"\n", start, end) + 1 or end
        payload = output[start:end]
        parts += (FRAME_HEADER.pack(timestamp_us, len(payload)), payload)
        start = end
    return b"".join(parts)


def whole_frames(data: bytes) -> int:
    """How many bytes of `data`, which starts with a frame, belong to whole frames."""
    position, size, header = 0, len(data), FRAME_HEADER.size
    while position + header <= size:
        end = position + header + FRAME_HEADER.unpack_from(data, position)[1]
        if end > size:
            break
        position = end
    return position


def iter_frames(data: bytes) -> Iterator[Tuple[int, bytes, int]]:
    """Yields (timestamp in microseconds, payload, offset of the frame's end in `data`) of whole frames.

    What stands after the last whole frame is left; the last yielded end says how much was used.
    """
    position = 0
    while position + FRAME_HEADER.size <= len(data):
        timestamp_us, length = FRAME_HEADER.unpack_from(data, position)
        end = position + FRAME_HEADER.size + length
        if end > len(data):
            return
        yield timestamp_us, data[position + FRAME_HEADER.size : end], end
        position = end


def encode_session_frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame of a session; `payload` has at most `MAX_FRAME_BYTES`."""
    return SESSION_HEADER.pack(kind, len(payload)) + payload
