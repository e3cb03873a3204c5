"""From a job spec to the task that its host's agent runs. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from dstack.agent.protocol import NodesSsh, RepoSpec, TaskSpec
from dstack.core.backends import LOCAL
from dstack.core.configurations.mounts import InstanceMountPoint, RepoExistsAction
from dstack.core.configurations.runs import DEFAULT_REPO_DIR
from dstack.core.files import FileArchiveMapping
from dstack.core.images import Images
from dstack.core.instances import Resources
from dstack.core.interpolation import fill_nodes, interpolate
from dstack.core.jobs import JobSpec
from dstack.core.repos import VIRTUAL_REPO_ID, RemoteRunRepoData
from dstack.server.planning.matching import share_of

BYTES_PER_GB = 1024**3
DEFAULT_GRACE_S = 10.0
UNLIMITED_S = 10 * 365 * 86400.0
"""`stop_duration: off`."""
SIMULATION = {
    "DSTACK_SIM_DURATION": ("duration_seconds", float),
    "DSTACK_SIM_EXIT_STATUS": ("exit_status", int),
    "DSTACK_SIM_LOG_LINES": ("log_lines", int),
}
"""Variables of a job that say how a simulated one behaves."""


DIFF_FILE = "repo-diff"
CREDENTIALS_FILE = "repo-credentials"
"""Names under which the agent is given what a repository needs."""
NODE_KEY_FILE = "node-key"
NODE_SSH_PORT = 10022
"""Of the `sshd` beside each of several nodes."""
HOSTFILE = "/dstack/mpi/hostfile"
"""Where containers find it."""


class CannotRun(ValueError):
    """The host can never run the job; the text says why and what to do."""


@dataclass(frozen=True)
class Node:
    """One node of the replica."""

    ip: str
    gpus: int = 0
    group_index: int = 0
    group_name: str = "0"
    number_in_group: int = 0


@dataclass(frozen=True)
class TaskContext:
    """A job and what its spec does not say."""

    job_id: UUID
    run_id: UUID
    run_name: str
    project_name: str
    repo_name: str | None
    spec: JobSpec
    nodes: tuple[Node, ...]
    """In the order of their job numbers."""
    secrets: Mapping[str, str]
    instance_env: Mapping[str, str] = field(default_factory=dict)
    """Of the fleet; the run's own come after it."""
    python: str | None = None
    """The version that the configuration asks for."""
    stop_seconds: float | None = None
    """How long the job may take to end once it is asked to; None: nobody said."""
    clone_url: str | None = None
    """Of the run's repository; None where the owner of the run gave none."""
    has_repo_credentials: bool = False
    mounts: tuple[Mapping[str, Any], ...] = ()
    """Of its volumes, as the agent takes them."""
    node_public_key: str | None = None
    """Of the pair that the nodes of the replica share."""


@dataclass(frozen=True)
class Host:
    """Where it runs."""

    backend: str
    """The backend's own type."""
    executors: tuple[str, ...]
    takes_whole: bool = True
    """The job has all of the instance, and its network."""
    gpus: int = -1
    """How many the job was given; -1: all."""
    cpus: float = 0
    """The limit of a part; 0: none."""
    memory_bytes: int = 0
    is_without_docker: bool = False
    """It was set up without: jobs that ask for no image are processes there."""


def share_on(resources: Resources, *, blocks: int, total_blocks: int) -> tuple[int, float, int]:
    """GPUs, cores and bytes of memory that a job is limited to on its part of an instance; all of it: no limit."""
    if blocks >= total_blocks:
        return -1, 0, 0
    part = share_of(resources, blocks, total_blocks).resources
    return len(part.gpus), part.cpus, part.memory_mib * 2**20


def upper_ends(spec: JobSpec, machine: Resources) -> tuple[float, int]:
    """Cores and bytes that a job on the server's own machine is limited to: what it asks for at most."""
    needed = spec.requirements.resources
    cpus = min(needed.cpu.count.max or 0, machine.cpus)
    return cpus, int((needed.memory.max or 0) * BYTES_PER_GB)


def own_address(job_id: UUID) -> str:
    """A loopback address of the job's own: nodes that share a machine are told apart by it."""
    number = job_id.int % (254 * 254 * 254)
    high, middle, low = number // (254 * 254), number // 254 % 254, number % 254
    return f"127.{high + 1}.{middle + 1}.{low + 1}"


def make_task(context: TaskContext, host: Host, images: Images) -> TaskSpec:
    """`images`: those that the job spec was made with.

    Raises CannotRun, and InterpolationError for a secret that is not there.
    """
    spec = context.spec
    executor = choose_executor(spec, host, images)
    env = job_env(context)
    is_process = executor == "process"
    auth = spec.registry_auth
    working_dir, repo_dir = _process_dirs(spec) if is_process else _container_dirs(spec)
    if executor == "container":
        env = {"DSTACK_WORKING_DIR": working_dir or "", "DSTACK_REPO_DIR": repo_dir} | env
        env = {"DSTACK_MPI_HOSTFILE": HOSTFILE} | env
    return TaskSpec(
        id=str(context.job_id),
        name=spec.job_name,
        executor=executor,
        commands=_with_nodes(_commands(spec, is_process), context.nodes),
        env=env,
        working_dir=working_dir,
        user=_user(spec),
        image=None if is_process else spec.image_name,
        registry_username=_fill(auth.username, context) if auth and not is_process else "",
        registry_password=_fill(auth.password, context) if auth and not is_process else "",
        privileged=spec.privileged,
        network_mode=_network_mode(spec, host, is_process),
        gpu=host.gpus,
        cpu=host.cpus,
        memory_bytes=host.memory_bytes,
        shm_size_bytes=int((spec.requirements.resources.shm_size or 0) * BYTES_PER_GB),
        mounts=[
            *(_mount(mount) for mount in spec.volumes or () if isinstance(mount, InstanceMountPoint)),
            *(dict(mount) for mount in context.mounts),
        ],
        ports=_ports(spec),
        max_duration_seconds=spec.max_duration,
        stop_grace_seconds=DEFAULT_GRACE_S if context.stop_seconds is None else context.stop_seconds,
        files=[_file(archive, spec, is_process) for archive in spec.file_archives],
        repo=_repo(context),
        repo_dir=repo_dir,
        python=context.python if is_process else None,
        nvcc=is_process and spec.image_name == images.nvcc,
        hostfile=_hostfile(context.nodes),
        ssh=_ssh(context),
        simulation=_simulation(env) if executor == "simulated" else {},
    )


def _network_mode(spec: JobSpec, host: Host, is_process: bool) -> str:
    """Replicas of services have ports of their own, so that several can be on one host."""
    if is_process:
        return "host" if spec.service_port is None else "bridge"
    return "host" if host.takes_whole or spec.jobs_per_replica > 1 else "bridge"


def choose_executor(spec: JobSpec, host: Host, images: Images) -> str:
    """A process on the machine in front of the user, or where there is no Docker, unless an image is asked for;
    else a container (ADR 0005).

    Whether the host has Docker is for its agent to say: it looks at the moment it is asked.
    """
    if "simulated" in host.executors:
        return "simulated"
    if (host.backend == LOCAL or host.is_without_docker) and images.is_default(spec.image_name):
        return "process"
    return "container"


def _commands(spec: JobSpec, is_process: bool) -> list[str]:
    """A shell is interactive to read its start-up files. Processes get a plain one, for the files are those of
    whoever runs the server; so does `sh`, which has none and may greet whoever uses it."""
    if len(spec.commands) < 4 or spec.commands[-3] != "-i":
        return list(spec.commands)
    is_plain = is_process or spec.commands[-4].rsplit("/", 1)[-1] == "sh"
    return [*spec.commands[:-3], *spec.commands[-2:]] if is_plain else list(spec.commands)


def _with_nodes(argv: list[str], nodes: tuple[Node, ...]) -> list[str]:
    addresses: dict[str, str] = {}
    for node in nodes:
        for group in (str(node.group_index), node.group_name):
            addresses[f"{group}.{node.number_in_group}"] = node.ip
    return [fill_nodes(text, addresses) if "${{" in text else text for text in argv]


def _process_dirs(spec: JobSpec) -> tuple[str | None, str]:
    """Working directory and repository of a process; the default folder of containers is not its own.

    None is a fresh folder of the task; the repository's is relative to the working directory.
    """
    repo_dir = "." if spec.repo_dir == DEFAULT_REPO_DIR else spec.repo_dir
    if spec.working_dir is not None or not repo_dir.startswith(("/", "~")):
        return spec.working_dir, repo_dir
    return repo_dir, repo_dir


def _container_dirs(spec: JobSpec) -> tuple[str, str]:
    """The same of a container, both absolute; a working directory that is not set is that of the repository."""
    base = posixpath.join(DEFAULT_REPO_DIR, _in_home(spec.working_dir or "", spec))
    repo_dir = posixpath.normpath(posixpath.join(base, _in_home(spec.repo_dir, spec)))
    return (posixpath.normpath(base) if spec.working_dir else repo_dir), repo_dir


def _in_home(path: str, spec: JobSpec) -> str:
    return (spec.home_dir or "/root") + path[1:] if path == "~" or path.startswith("~/") else path


def _file(archive: FileArchiveMapping, spec: JobSpec, is_process: bool) -> dict[str, str]:
    return {"name": str(archive.id), "path": archive.path if is_process else _in_home(archive.path, spec)}


def _repo(context: TaskContext) -> dict[str, Any] | None:
    spec, data = context.spec, context.spec.repo_data
    if not isinstance(data, RemoteRunRepoData):
        return None
    if context.clone_url is None:
        raise CannotRun(
            f"Nothing says where to clone the repository {data.repo_name} from: "
            "run `dstack init` in it, and apply again"
        )
    return RepoSpec(
        clone_url=context.clone_url,
        branch=data.repo_branch,
        hash=data.repo_hash,
        single_branch=spec.single_branch is not False,
        if_exists=(spec.repo_exists_action or RepoExistsAction.ERROR).value,
        config_name=data.repo_config_name,
        config_email=data.repo_config_email,
        diff=DIFF_FILE if spec.repo_code_hash else "",
        credentials=CREDENTIALS_FILE if context.has_repo_credentials else "",
    ).to_json()


def _hostfile(nodes: tuple[Node, ...]) -> str:
    """One line a node, as `mpirun` reads it."""
    return "".join(f"{node.ip} slots={node.gpus}\n" if node.gpus else f"{node.ip}\n" for node in nodes)


def _ssh(context: TaskContext) -> dict[str, Any] | None:
    """Nodes that share a machine each have an address of their own there to listen on."""
    if context.node_public_key is None:
        return None
    own = context.nodes[context.spec.job_num].ip
    return NodesSsh(
        key=NODE_KEY_FILE,
        public_key=context.node_public_key,
        port=NODE_SSH_PORT,
        addresses=[node.ip for node in context.nodes],
        listen=own if own.startswith("127.") else "",
    ).to_json()


def _user(spec: JobSpec) -> str | None:
    user = spec.user
    if user is None:
        return None
    name = user.username if user.uid is None else str(user.uid)
    group = user.groupname if user.gid is None else str(user.gid)
    return f"{name}:{group}" if group else name


def _mount(mount: InstanceMountPoint) -> dict[str, Any]:
    return {"host_path": mount.instance_path, "path": mount.path, "optional": mount.optional}


def _ports(spec: JobSpec) -> list[int]:
    ports = [app.port for app in spec.app_specs or ()]
    return list(dict.fromkeys([*ports, *([spec.service_port] if spec.service_port else [])]))


def job_env(context: TaskContext) -> dict[str, str]:
    """The variables of `docs/concepts/runs.md`; what the user sets comes last and wins."""
    spec, nodes = context.spec, context.nodes
    own = nodes[spec.job_num] if spec.job_num < len(nodes) else Node("")
    env = {
        "DSTACK_RUN_NAME": context.run_name,
        "DSTACK_RUN_ID": str(context.run_id),
        "DSTACK_JOB_ID": str(context.job_id),
        "DSTACK_REPO_ID": context.repo_name or VIRTUAL_REPO_ID,
        "DSTACK_NODES_NUM": str(spec.jobs_per_replica),
        "DSTACK_NODE_RANK": str(spec.job_num),
        "DSTACK_NODES_IPS": "\n".join(node.ip for node in nodes),
        "DSTACK_MASTER_NODE_IP": nodes[0].ip if nodes else "",
        "DSTACK_GPUS_PER_NODE": str(own.gpus),
        "DSTACK_GPUS_NUM": str(sum(node.gpus for node in nodes)),
    }
    if spec.service_port is not None:
        env["DSTACK_SERVICE_PORT"] = str(spec.service_port)
    given = {**context.instance_env, **spec.env}
    return env | {name: _fill(value, context) for name, value in given.items()}


def _fill(text: str, context: TaskContext) -> str:
    """`${{ secrets.name }}` is filled in only here, on the way to the host."""
    return interpolate(text, {"secrets": context.secrets}) if "${{" in text else text


def _simulation(env: Mapping[str, str]) -> dict[str, Any]:
    asked = {}
    for variable, (name, kind) in SIMULATION.items():
        if variable in env:
            try:
                asked[name] = kind(env[variable])
            except ValueError as error:
                raise CannotRun(f"{variable} must be a number, not {env[variable]!r}") from error
    return asked
