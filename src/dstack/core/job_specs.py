"""From what was asked for to what each job runs: the defaults of a run spec, and the job specs derived from it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace

from dstack.core.configurations.dev_environment import DevEnvironmentConfiguration
from dstack.core.configurations.files import AnyRunConfiguration
from dstack.core.configurations.mounts import InstanceMountPoint, RepoExistsAction, VolumeMountPoint
from dstack.core.configurations.ports import PortMapping
from dstack.core.configurations.profiles import (
    DEFAULT_STOP_DURATION,
    ProfileParams,
    SpotPolicy,
    resolve_retry,
)
from dstack.core.configurations.runs import DEFAULT_PRIORITY, DEFAULT_REPO_DIR
from dstack.core.configurations.service import (
    HTTPHeaderSpec,
    OpenAIChatModel,
    ProbeConfig,
    ReplicaGroup,
    ServiceConfiguration,
)
from dstack.core.configurations.task import TaskConfiguration
from dstack.core.ides import IDES, Ide
from dstack.core.images import Images
from dstack.core.instances import Requirements
from dstack.core.interpolation import interpolate
from dstack.core.jobs import AppSpec, JobSpec, JobSSHKey, ProbeSpec
from dstack.core.repos import VIRTUAL_REPO_ID, VirtualRunRepoData
from dstack.core.resources import AcceleratorVendor, CPUArchitecture, ResourcesSpec
from dstack.core.runs import RunSpec
from dstack.core.users import UnixUser

START_DOCKER = "start-dockerd"
"""What the image of `docker: true` has; it returns once the daemon inside the job answers."""
DEFAULT_SHELL = "/bin/bash"
IMAGE_SHELL = "/bin/sh"
DEFAULT_PROBE_TIMEOUT = 10
DEFAULT_PROBE_INTERVAL = 15
MODEL_PROBE_TIMEOUT = 30
RESERVED_PORTS = range(10000, 11000)
"""Used by the platform itself inside a job; never shown as an app."""


def effective_run_spec(run_spec: RunSpec, *, run_name: str | None, ssh_key_pub: str | None) -> RunSpec:
    """The run spec with every default filled in that a plan shows and a stored run has, so that the two are equal.

    `run_name` is used where none was given, `ssh_key_pub` (the user's key, verbatim) where the client sent none.
    """
    spec = run_spec.model_copy(deep=True)
    configuration = spec.configuration
    spec.run_name = spec.run_name or configuration.name or run_name
    spec.ssh_key_pub = spec.ssh_key_pub or ssh_key_pub
    if spec.repo_id is None or spec.repo_data is None:
        spec.repo_id, spec.repo_data = VIRTUAL_REPO_ID, VirtualRunRepoData()
    if configuration.priority is None:
        configuration.priority = DEFAULT_PRIORITY
    if isinstance(configuration, TaskConfiguration) and configuration.groups is None:
        configuration.nodes = configuration.nodes or 1
    _fill_gpu_vendor(configuration)
    return spec


def merge_profile(run_spec: RunSpec) -> AnyRunConfiguration:
    """A copy of the configuration in which what it leaves open is taken from the profile."""
    configuration = run_spec.configuration.model_copy(deep=True)
    if run_spec.profile is not None:
        for field in ProfileParams.model_fields:
            if getattr(configuration, field) is None:
                setattr(configuration, field, getattr(run_spec.profile, field))
    return configuration


def _fill_gpu_vendor(configuration: AnyRunConfiguration) -> None:
    """The default image is made for NVIDIA GPUs."""
    if configuration.image is not None or configuration.docker:
        return
    parts: list[ResourcesSpec] = [configuration.resources]
    if isinstance(configuration, (TaskConfiguration, ServiceConfiguration)):
        parts += [group.resources for group in configuration.groups or ()]
    for resources in parts:
        if resources.gpu is not None and resources.gpu.vendor is None:
            resources.gpu.vendor = AcceleratorVendor.NVIDIA


@dataclass(frozen=True, kw_only=True)
class _Node:
    """Where a job stands in its replica, and what its group, or else the configuration, says about it."""

    job_num: int = 0
    group_index: int = 0
    group_name: str = "0"
    index_in_group: int = 0
    commands: list[str]
    ports: list[PortMapping]
    resources: ResourcesSpec
    image: str | None
    docker: bool | None
    nvcc: bool | None
    privileged: bool
    spot_policy: SpotPolicy | None
    reservation: str | None


def make_job_specs(
    run_spec: RunSpec,
    *,
    run_name: str,
    images: Images,
    replica_num: int = 0,
    replica_group: str | None = None,
    ssh_key: JobSSHKey | None = None,
) -> list[JobSpec]:
    """The jobs of one replica, in the order of their numbers; `run_spec` is an effective one.

    `images` are those of jobs that name none. `replica_group` names a group of a service that has groups (its
    first one by default). `ssh_key` is the pair that the nodes of a replica share; it is used only where there are
    several.
    """
    configuration = merge_profile(run_spec)
    nodes = _nodes(configuration, replica_group)
    return [
        JobSpec(
            replica_num=replica_num,
            job_num=node.job_num,
            job_name=f"{run_name}-{node.job_num}-{replica_num}",
            jobs_per_replica=len(nodes),
            replica_group=_replica_group_name(configuration, replica_group),
            app_specs=_app_specs(node.ports),
            user=None if configuration.user is None else UnixUser.parse(configuration.user),
            commands=_argv(configuration, node),
            env={name: str(value) for name, value in configuration.env.items()},
            home_dir=configuration.home_dir,
            image_name=_image_name(node, images),
            privileged=node.privileged or bool(node.docker),
            single_branch=_single_branch(configuration),
            max_duration=_seconds(configuration.max_duration),
            stop_duration=_stop_duration(configuration),
            utilization_policy=configuration.utilization_policy,
            registry_auth=configuration.registry_auth,
            requirements=_requirements(configuration, node, is_multinode=len(nodes) > 1),
            retry=resolve_retry(configuration.retry),
            volumes=[_place_mount(mount, node.job_num) for mount in configuration.volumes],
            ssh_key=ssh_key if len(nodes) > 1 else None,
            working_dir=configuration.working_dir or run_spec.working_dir,
            repo_data=run_spec.repo_data,
            repo_code_hash=run_spec.repo_code_hash,
            repo_dir=run_spec.repo_dir or DEFAULT_REPO_DIR,
            repo_exists_action=_repo_exists_action(configuration),
            file_archives=run_spec.file_archives,
            service_port=_service_port(configuration),
            probes=_probes(configuration),
            node_group_index=node.group_index,
            node_group_name=node.group_name,
            node_group_job_index=node.index_in_group,
        )
        for node in nodes
    ]


def _nodes(configuration: AnyRunConfiguration, replica_group: str | None) -> list[_Node]:
    if isinstance(configuration, TaskConfiguration):
        return _task_nodes(configuration)
    if isinstance(configuration, ServiceConfiguration):
        return [_replica_node(configuration, replica_group)]
    return [_plain_node(configuration, _dev_commands(configuration), configuration.ports)]


def _task_nodes(configuration: TaskConfiguration) -> list[_Node]:
    if configuration.groups is None:
        plain = _plain_node(configuration, configuration.commands, configuration.ports)
        numbers = range(configuration.nodes or 1)
        return [replace(plain, job_num=number, index_in_group=number) for number in numbers]
    nodes: list[_Node] = []
    for group_index, group in enumerate(configuration.groups):
        plain = _plain_node(configuration, group.commands, group.ports)
        plain = replace(plain, group_index=group_index, resources=group.resources)
        plain = replace(plain, group_name=group.name or str(group_index))
        nodes += [replace(plain, job_num=len(nodes) + index, index_in_group=index) for index in range(group.nodes)]
    return nodes


def _replica_node(configuration: ServiceConfiguration, name: str | None) -> _Node:
    plain = _plain_node(configuration, configuration.commands, [])
    group = find_replica_group(configuration, name)
    if group is None:
        return plain
    return replace(
        plain,
        commands=group.commands,
        resources=group.resources,
        image=group.image or plain.image,
        docker=plain.docker if group.docker is None else group.docker,
        nvcc=plain.nvcc if group.nvcc is None else group.nvcc,
        privileged=plain.privileged if group.privileged is None else group.privileged,
        spot_policy=group.spot_policy or plain.spot_policy,
        reservation=group.reservation or plain.reservation,
    )


def find_replica_group(configuration: ServiceConfiguration, name: str | None) -> ReplicaGroup | None:
    """The service's group of that name, the first one without a name; None when the service has no such group."""
    for group in configuration.groups or ():
        if name is None or group.name == name:
            return group
    return None


def _plain_node(configuration: AnyRunConfiguration, commands: list[str], ports: list[PortMapping]) -> _Node:
    return _Node(
        commands=commands,
        ports=ports,
        resources=configuration.resources,
        image=configuration.image,
        docker=configuration.docker,
        nvcc=configuration.nvcc,
        privileged=configuration.privileged,
        spot_policy=configuration.spot_policy,
        reservation=configuration.reservation,
    )


def _dev_commands(configuration: DevEnvironmentConfiguration) -> list[str]:
    """A dev environment stays up until it is stopped. Its log tells where whoever is attached opens it."""
    ide = None if configuration.ide is None else IDES[configuration.ide]
    link = [] if ide is None else [_say_link(ide)]
    return [*configuration.init, *link, "exec sleep infinity"]


def _say_link(ide: Ide) -> str:
    return f'echo "Open in {ide.name}: {ide.url.format(host="$DSTACK_RUN_NAME", folder="$PWD")}"'


def _replica_group_name(configuration: AnyRunConfiguration, name: str | None) -> str:
    if not isinstance(configuration, ServiceConfiguration):
        return "0"
    group = find_replica_group(configuration, name)
    return "0" if group is None or group.name is None else group.name


def _app_specs(ports: list[PortMapping]) -> list[AppSpec]:
    shown = [port for port in ports if port.container_port not in RESERVED_PORTS]
    return [
        AppSpec(port=port.container_port, map_to_port=port.local_port, app_name=f"app_{index}")
        for index, port in enumerate(shown)
    ]


def _argv(configuration: AnyRunConfiguration, node: _Node) -> list[str]:
    """What is executed; empty where the image's own command is. An entrypoint gets it as arguments."""
    commands = [*configuration.setup, *node.commands]
    if commands and node.docker:
        commands.insert(0, START_DOCKER)
    entrypoint = shlex.split(configuration.entrypoint) if configuration.entrypoint else []
    if not commands:
        return entrypoint
    return [*entrypoint, _shell(configuration, node), "-i", "-c", join_commands(commands)]


def join_commands(commands: list[str]) -> str:
    """One line for the shell that stops at the first command that fails; those in the background are grouped."""
    return " && ".join(
        f"{{ {command} }}" if command.rstrip().endswith("&") and not command.rstrip().endswith("&&") else command
        for command in commands
    )


def _shell(configuration: AnyRunConfiguration, node: _Node) -> str:
    if configuration.shell is not None:
        return configuration.shell if configuration.shell.startswith("/") else f"/bin/{configuration.shell}"
    return DEFAULT_SHELL if node.image is None else IMAGE_SHELL


def _image_name(node: _Node, images: Images) -> str:
    if node.docker:
        return images.docker
    return node.image or (images.nvcc if node.nvcc else images.base)


def _single_branch(configuration: AnyRunConfiguration) -> bool:
    if configuration.single_branch is not None:
        return configuration.single_branch
    return not isinstance(configuration, DevEnvironmentConfiguration)


def _seconds(limit: int | str | None) -> int | None:
    return limit if isinstance(limit, int) else None


def _stop_duration(configuration: AnyRunConfiguration) -> int | None:
    if configuration.stop_duration is None:
        return DEFAULT_STOP_DURATION
    return _seconds(configuration.stop_duration)


def _requirements(configuration: AnyRunConfiguration, node: _Node, *, is_multinode: bool) -> Requirements:
    resources = node.resources.model_copy(deep=True)
    if resources.cpu.arch is None and node.image is None and not node.docker:
        resources.cpu.arch = CPUArchitecture.X86
    policy = node.spot_policy or SpotPolicy.ONDEMAND
    return Requirements(
        resources=resources,
        max_price=configuration.max_price,
        spot=None if policy is SpotPolicy.AUTO else policy is SpotPolicy.SPOT,
        reservation=node.reservation,
        multinode=is_multinode,
        backend_options=configuration.backend_options,
    )


def _place_mount(
    mount: VolumeMountPoint | InstanceMountPoint, job_num: int
) -> VolumeMountPoint | InstanceMountPoint:
    """The mount with the node's number in the names of its volumes, always as a list."""
    if isinstance(mount, InstanceMountPoint):
        return mount
    values = {"dstack": {"node_rank": str(job_num), "job_num": str(job_num)}}
    names = [mount.name] if isinstance(mount.name, str) else mount.name
    return VolumeMountPoint(name=[interpolate(name, values) for name in names], path=mount.path)


def _repo_exists_action(configuration: AnyRunConfiguration) -> RepoExistsAction | None:
    return configuration.repos[0].if_exists if configuration.repos else None


def _service_port(configuration: AnyRunConfiguration) -> int | None:
    return configuration.port.container_port if isinstance(configuration, ServiceConfiguration) else None


def _probes(configuration: AnyRunConfiguration) -> list[ProbeSpec]:
    if not isinstance(configuration, ServiceConfiguration):
        return []
    if configuration.probes is None:
        model = configuration.model
        return [_model_probe(model)] if isinstance(model, OpenAIChatModel) else []
    return [_probe_spec(probe) for probe in configuration.probes]


def _probe_spec(probe: ProbeConfig) -> ProbeSpec:
    return ProbeSpec(
        type=probe.type,
        url=probe.url or "/",
        method=probe.method or "get",
        headers=probe.headers,
        body=probe.body,
        timeout=probe.timeout or DEFAULT_PROBE_TIMEOUT,
        interval=probe.interval or DEFAULT_PROBE_INTERVAL,
        ready_after=probe.ready_after or 1,
        until_ready=bool(probe.until_ready),
    )


def _model_probe(model: OpenAIChatModel) -> ProbeSpec:
    """A model is ready once it answers."""
    body = {"model": model.name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    return ProbeSpec(
        type="http",
        url=f"{model.prefix.rstrip('/')}/chat/completions",
        method="post",
        headers=[HTTPHeaderSpec(name="Content-Type", value="application/json")],
        body=json.dumps(body),
        timeout=MODEL_PROBE_TIMEOUT,
        interval=DEFAULT_PROBE_INTERVAL,
        ready_after=1,
    )
