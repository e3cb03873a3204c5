"""Jobs: what runs on one instance. A run has one job a node and replica; each attempt is a submission."""

import enum
from typing import Any, Literal
from uuid import UUID

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from dstack.core.backends import BackendType
from dstack.core.configurations.mounts import MountPoint, RepoExistsAction
from dstack.core.configurations.profiles import Retry, RetryEvent, UtilizationPolicy
from dstack.core.configurations.runs import DEFAULT_REPO_DIR, RegistryAuth
from dstack.core.configurations.service import HTTPHeaderSpec, ProbeMethod
from dstack.core.files import FileArchiveMapping
from dstack.core.instances import GpuDriverInfo, InstanceOfferWithAvailability, InstanceType, Requirements
from dstack.core.models import CoreModel, Timestamp
from dstack.core.repos import RunRepoData
from dstack.core.resources import Memory
from dstack.core.ssh import SSHConnectionParams
from dstack.core.users import UnixUser


class JobStatus(str, enum.Enum):
    """Where a job submission is in its life."""

    SUBMITTED = "submitted"
    PROVISIONING = "provisioning"
    PULLING = "pulling"
    RUNNING = "running"
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    ABORTED = "aborted"
    FAILED = "failed"
    DONE = "done"

    def is_finished(self) -> bool:
        """Whether it never changes again."""
        return self in (JobStatus.TERMINATED, JobStatus.ABORTED, JobStatus.FAILED, JobStatus.DONE)


class JobTerminationReason(str, enum.Enum):
    """Why a job submission ended."""

    FAILED_TO_START_DUE_TO_NO_CAPACITY = "failed_to_start_due_to_no_capacity"
    INTERRUPTED_BY_NO_CAPACITY = "interrupted_by_no_capacity"
    INSTANCE_UNREACHABLE = "instance_unreachable"
    INSTANCE_ACCESS_REVOKED = "instance_access_revoked"
    WAITING_INSTANCE_LIMIT_EXCEEDED = "waiting_instance_limit_exceeded"
    WAITING_RUNNER_LIMIT_EXCEEDED = "waiting_runner_limit_exceeded"
    VOLUME_ERROR = "volume_error"
    GATEWAY_ERROR = "gateway_error"
    CONTAINER_EXITED_WITH_ERROR = "container_exited_with_error"
    PORTS_BINDING_FAILED = "ports_binding_failed"
    CREATING_CONTAINER_ERROR = "creating_container_error"
    EXECUTOR_ERROR = "executor_error"
    LOG_QUOTA_EXCEEDED = "log_quota_exceeded"
    TERMINATED_BY_USER = "terminated_by_user"
    TERMINATED_BY_SERVER = "terminated_by_server"
    SCALED_DOWN = "scaled_down"
    INACTIVITY_DURATION_EXCEEDED = "inactivity_duration_exceeded"
    TERMINATED_DUE_TO_UTILIZATION_POLICY = "terminated_due_to_utilization_policy"
    MAX_DURATION_EXCEEDED = "max_duration_exceeded"
    DONE_BY_RUNNER = "done_by_runner"
    ABORTED_BY_USER = "aborted_by_user"

    @property
    def job_status(self) -> JobStatus:
        """The status that the submission ends in."""
        if self is JobTerminationReason.DONE_BY_RUNNER:
            return JobStatus.DONE
        if self is JobTerminationReason.ABORTED_BY_USER:
            return JobStatus.ABORTED
        return JobStatus.TERMINATED if self in _TERMINATED else JobStatus.FAILED

    @property
    def retry_event(self) -> RetryEvent | None:
        """Which entry of `retry.on_events` makes the job retryable; None if nothing does."""
        if self is JobTerminationReason.FAILED_TO_START_DUE_TO_NO_CAPACITY:
            return RetryEvent.NO_CAPACITY
        if self is JobTerminationReason.INTERRUPTED_BY_NO_CAPACITY:
            return RetryEvent.INTERRUPTION
        return RetryEvent.ERROR if self.job_status is JobStatus.FAILED else None

    @property
    def error(self) -> str | None:
        """What to tell people; None where the status says it all."""
        return _ERROR_TEXTS.get(self)


_R = JobTerminationReason
_TERMINATED = frozenset(
    {
        _R.TERMINATED_BY_USER,
        _R.TERMINATED_BY_SERVER,
        _R.SCALED_DOWN,
        _R.INACTIVITY_DURATION_EXCEEDED,
        _R.TERMINATED_DUE_TO_UTILIZATION_POLICY,
        _R.MAX_DURATION_EXCEEDED,
    }
)
_ERROR_TEXTS = {
    _R.INSTANCE_UNREACHABLE: "instance unreachable",
    _R.INSTANCE_ACCESS_REVOKED: "instance access revoked",
    _R.WAITING_INSTANCE_LIMIT_EXCEEDED: "waiting instance limit exceeded",
    _R.WAITING_RUNNER_LIMIT_EXCEEDED: "waiting runner limit exceeded",
    _R.VOLUME_ERROR: "volume error",
    _R.GATEWAY_ERROR: "gateway error",
    _R.PORTS_BINDING_FAILED: "ports binding failed",
    _R.CREATING_CONTAINER_ERROR: "runner error",
    _R.EXECUTOR_ERROR: "executor error",
    _R.LOG_QUOTA_EXCEEDED: "log quota exceeded",
    _R.SCALED_DOWN: "scaled down",
    _R.INACTIVITY_DURATION_EXCEEDED: "inactivity duration exceeded",
    _R.TERMINATED_DUE_TO_UTILIZATION_POLICY: "utilization policy",
    _R.MAX_DURATION_EXCEEDED: "max duration exceeded",
}


class AppSpec(CoreModel):
    """A port that the job listens on."""

    port: int
    map_to_port: int | None = None
    app_name: str
    url_path: str | None = None
    url_query_params: dict[str, str] | None = None


class JobSSHKey(CoreModel):
    """The key pair by which the nodes of a replica reach each other."""

    private: str
    public: str


class ProbeSpec(CoreModel):
    """A probe with all its defaults filled in; durations are in seconds."""

    type: Literal["http"]
    url: str
    method: ProbeMethod = "get"
    headers: list[HTTPHeaderSpec] = Field(default_factory=list)
    body: str | None = None
    timeout: int
    interval: int
    ready_after: int
    until_ready: bool = False


class JobSpec(CoreModel):
    """What one job runs and needs: derived from the run spec. Durations are in seconds."""

    replica_num: int = 0
    job_num: int
    job_name: str
    jobs_per_replica: int = 1
    replica_group: str = "0"
    app_specs: list[AppSpec] | None = None
    user: UnixUser | None = None
    commands: list[str]
    env: dict[str, str]
    home_dir: str | None = None
    image_name: str
    privileged: bool = False
    single_branch: bool | None = None
    max_duration: int | None = None
    stop_duration: int | None = None
    utilization_policy: UtilizationPolicy | None = None
    registry_auth: RegistryAuth | None = None
    requirements: Requirements
    retry: Retry | None = None
    volumes: list[MountPoint] | None = None
    ssh_key: JobSSHKey | None = None
    working_dir: str | None = None
    repo_data: RunRepoData | None = None
    repo_code_hash: str | None = None
    repo_dir: str = DEFAULT_REPO_DIR
    repo_exists_action: RepoExistsAction | None = None
    file_archives: list[FileArchiveMapping] = Field(default_factory=list)
    service_port: int | None = None
    probes: list[ProbeSpec] = Field(default_factory=list)
    node_group_index: int = 0
    node_group_name: str = "0"
    node_group_job_index: int = 0


class NetworkMode(str, enum.Enum):
    """Whether a job shares its host's network."""

    HOST = "host"
    BRIDGE = "bridge"


class JobProvisioningData(CoreModel):
    """The instance that a submission was given. `price` is in dollars per hour."""

    backend: BackendType
    base_backend: BackendType | None = None
    instance_type: InstanceType
    instance_id: str
    hostname: str | None = None
    internal_ip: str | None = None
    public_ip_enabled: bool = True
    instance_network: str | None = None
    region: str
    availability_zone: str | None = None
    reservation: str | None = None
    price: float
    username: str
    ssh_port: int | None = None
    dockerized: bool
    ssh_proxy: SSHConnectionParams | None = None
    backend_data: str | None = None
    gpu_driver: GpuDriverInfo | None = None


class JobRuntimeData(CoreModel):
    """The share of its instance that a submission runs on; null for all of it. `memory` is in gigabytes."""

    network_mode: NetworkMode
    gpu: int | None = None
    cpu: float | None = None
    memory: Memory | None = None
    ports: dict[int, int] | None = None
    """Ports of the job and the ports of its host that lead to them."""
    volume_names: list[str] | None = None
    offer: InstanceOfferWithAvailability | None = None
    working_dir: str | None = None
    username: str | None = None


class Probe(CoreModel):
    """What a probe has seen."""

    success_streak: int


class ImagePullProgress(CoreModel):
    """How much of a job's image is on its host."""

    downloaded_bytes: int
    extracted_bytes: int
    total_bytes: int
    is_total_bytes_final: bool


class JobSubmission(CoreModel):
    """One attempt at a job."""

    id: UUID
    submission_num: int
    deployment_num: int = 0
    submitted_at: Timestamp
    last_processed_at: Timestamp
    finished_at: Timestamp | None = None
    inactivity_secs: int | None = None
    status: JobStatus
    status_message: str = ""
    termination_reason: str | None = None
    termination_reason_message: str | None = None
    exit_status: int | None = None
    job_provisioning_data: JobProvisioningData | None = None
    job_runtime_data: JobRuntimeData | None = None
    error: str | None = None
    probes: list[Probe] = Field(default_factory=list)
    image_pull_progress: ImagePullProgress | None = None


class SSHDoorAddress(CoreModel):
    """The server's own way into its jobs, which its URL leads to as well (`/api/ssh`)."""

    hostname: str | None = None
    """None: it has no port of its own, and only the URL leads there."""
    port: int | None = None
    username: str
    """The id of the job's submission."""
    host_key: str
    """Type and base64, to be pinned."""


class JobConnectionInfo(CoreModel):
    """How to get into a running job."""

    ide_name: str | None = None
    attached_ide_url: str | None = None
    proxied_ide_url: str | None = None
    attached_ssh_command: list[str] | None = None
    proxied_ssh_command: list[str] | None = None
    sshproxy_hostname: str | None = None
    sshproxy_port: int | None = None
    sshproxy_upstream_id: str | None = None
    ssh_door: SSHDoorAddress | None = None
    host_network_id: str | None = None
    """Of the server's machine when the job runs there: clients on it reach ports of the host without a forward."""

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The published schema does not have the last two: they are there only when they are set."""
        dumped: dict[str, Any] = handler(self)
        for name in ("ssh_door", "host_network_id"):
            if dumped[name] is None:
                del dumped[name]
        return dumped


class Job(CoreModel):
    """A job and its attempts, oldest first."""

    job_spec: JobSpec
    job_submissions: list[JobSubmission]
    job_connection_info: JobConnectionInfo | None = None


class JobPlan(CoreModel):
    """Where a job could run. `max_price` is in dollars per hour."""

    job_spec: JobSpec
    offers: list[InstanceOfferWithAvailability]
    total_offers: int
    max_price: float | None = None
