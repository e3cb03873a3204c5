"""What Docker is asked to create for a task. Pure but for the look at the host's folders."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List

from dstack.agent import nodes
from dstack.agent.gpu.parse import Gpu
from dstack.agent.gpu.pool import VARIABLES
from dstack.agent.protocol import TaskSpec

TASK_LABEL = "dstack.task"
AGENT_LABEL = "dstack.agent"
FOLDER_LABEL = "dstack.agent.folder"
DEVICES = {"amd": ["/dev/kfd", "/dev/dri"], "tenstorrent": ["/dev/tenstorrent"]}
LOG_CONFIG = {"Type": "json-file", "Config": {"max-size": "1g", "max-file": "4"}}


class SpecError(Exception):
    """The task cannot be run in a container as it is; the message is for the user."""


def container_name(spec: TaskSpec) -> str:
    """The task's name and the start of its id, in the letters that Docker allows."""
    return re.sub(r"[^a-zA-Z0-9_.-]", "-", "{}-{}".format(spec.name.lstrip("-._") or "task", spec.id[:8]))


def container_config(spec: TaskSpec, labels: Dict[str, str], gpus: List[Gpu]) -> Dict[str, Any]:
    """The body of Docker's create call. `labels`: of the agent. Raises SpecError."""
    config: Dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in {**_gpu_environment(gpus), **spec.env}.items()],
        "Labels": {TASK_LABEL: spec.id, **labels},
        "Tty": True,
        "ExposedPorts": {f"{port}/tcp": {} for port in spec.ports},
        "HostConfig": _host_config(spec, gpus),
    }
    if spec.commands:
        commands = nodes.waiting(spec.commands) if spec.ssh else spec.commands
        config["Entrypoint"], config["Cmd"] = commands[:1], commands[1:]
    if spec.working_dir:
        config["WorkingDir"] = spec.working_dir
    if spec.user:
        config["User"] = spec.user
    return config


def _gpu_environment(gpus: List[Gpu]) -> Dict[str, str]:
    """Limits the task to its accelerators where Docker itself does not."""
    if not gpus or gpus[0].vendor == "nvidia":
        return {}
    return {name: ",".join(gpu.id for gpu in gpus) for name in VARIABLES[gpus[0].vendor]}


def _host_config(spec: TaskSpec, gpus: List[Gpu]) -> Dict[str, Any]:
    config: Dict[str, Any] = {
        "NetworkMode": spec.network_mode,
        "Privileged": spec.privileged,
        "LogConfig": LOG_CONFIG,
        "Mounts": _mounts(spec),
    }
    if spec.network_mode == "bridge":
        config["PortBindings"] = {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}] for port in spec.ports}
    if spec.shm_size_bytes:
        config["ShmSize"] = spec.shm_size_bytes
    if spec.memory_bytes:
        config["Memory"] = config["MemorySwap"] = spec.memory_bytes
    if spec.cpu:
        config["NanoCpus"] = int(spec.cpu * 1_000_000_000)
    config.update(_gpu_config(gpus))
    return config


def _gpu_config(gpus: List[Gpu]) -> Dict[str, Any]:
    """How the vendors' accelerators get into a container."""
    vendor, ids = (gpus[0].vendor if gpus else ""), [gpu.id for gpu in gpus]
    if vendor == "nvidia":
        return {"DeviceRequests": [{"Capabilities": [["gpu"]], "DeviceIDs": ids}]}
    if vendor == "intel":
        return {"Runtime": "habana"}
    if vendor in DEVICES:
        return {"Devices": [_device(path) for path in DEVICES[vendor]], "SecurityOpt": ["seccomp=unconfined"]}
    return {}


def _device(path: str) -> Dict[str, str]:
    return {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"}


def _mounts(spec: TaskSpec) -> List[Dict[str, Any]]:
    mounts = []
    for mount in spec.mounts:
        source = mount["host_path"]
        if not os.path.exists(source):
            if mount.get("optional"):
                continue
            _make_source(source)
        mounts.append({"Type": "bind", "Source": source, "Target": mount["path"]})
    return mounts


def _make_source(path: str) -> None:
    try:
        os.makedirs(path)
    except OSError as error:
        raise SpecError(f"the folder {path} of the host cannot be made for mounting: {error.strerror}") from error


def published_ports(spec: TaskSpec, network: Dict[str, Any]) -> List[Dict[str, int]]:
    """Where the task's ports can be reached, from what Docker tells of the container's network."""
    if spec.network_mode != "bridge":
        return [{"container": port, "host": port} for port in spec.ports]
    found = []
    for port in spec.ports:
        for binding in (network.get("Ports") or {}).get(f"{port}/tcp") or []:
            found.append({"container": port, "host": int(binding["HostPort"])})
            break
    return found
