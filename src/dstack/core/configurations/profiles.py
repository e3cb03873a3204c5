"""Profiles: how and where to run. The same fields may stand in a configuration itself."""

import enum
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from typing_extensions import Self

from dstack.core.backends import BackendType, VastAIProfileOptions
from dstack.core.configurations.references import EntityReference, InstanceSelector
from dstack.core.cron import CronExpression
from dstack.core.durations import Duration, DurationLimit, IdleDuration
from dstack.core.models import CoreModel

DEFAULT_RETRY_DURATION = 3600
"""Seconds."""
DEFAULT_STOP_DURATION = 300
"""Seconds."""
DEFAULT_FLEET_IDLE_DURATION = 72 * 3600
"""Seconds that an instance of a fleet stays up without work."""
MIN_UTILIZATION_WINDOW = 300
"""Seconds."""

_TAG_KEY = re.compile(r"[_\-a-zA-Z0-9]{1,60}")
_TAG_VALUE = re.compile(r"[a-zA-Z0-9 .:/=_\-+@]{0,256}")


class SpotPolicy(str, enum.Enum):
    """Whether to use instances that the cloud may take back."""

    SPOT = "spot"
    ONDEMAND = "on-demand"
    AUTO = "auto"


class CreationPolicy(str, enum.Enum):
    """Whether new instances may be created."""

    REUSE = "reuse"
    REUSE_OR_CREATE = "reuse-or-create"


class StartupOrder(str, enum.Enum):
    """In which order the jobs of a distributed task start."""

    ANY = "any"
    MASTER_FIRST = "master-first"
    WORKERS_FIRST = "workers-first"


class StopCriteria(str, enum.Enum):
    """When a distributed task is over."""

    ALL_DONE = "all-done"
    MASTER_DONE = "master-done"


class RetryEvent(str, enum.Enum):
    """What a run is retried after."""

    NO_CAPACITY = "no-capacity"
    INTERRUPTION = "interruption"
    ERROR = "error"


class ProfileRetry(CoreModel):
    """When and for how long to retry; without `on_events` after anything, without `duration` for an hour."""

    on_events: list[RetryEvent] | None = None
    """By default all of them."""
    duration: Duration | None = None
    """How long to go on retrying; by default an hour."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.on_events is not None and not self.on_events:
            raise ValueError("'on_events' is empty: name events, leave it out for all, or write 'retry: false'")
        return self


class Retry(CoreModel):
    """A job's retry policy, spelt out."""

    on_events: list[RetryEvent]
    duration: int


def resolve_retry(retry: ProfileRetry | bool | None) -> Retry | None:
    """What a configuration's `retry` means; None for no retry."""
    if not retry:
        return None
    policy = retry if isinstance(retry, ProfileRetry) else ProfileRetry()
    return Retry(
        on_events=policy.on_events or list(RetryEvent),
        duration=DEFAULT_RETRY_DURATION if policy.duration is None else policy.duration,
    )


def _check_window(seconds: int) -> int:
    if seconds < MIN_UTILIZATION_WINDOW:
        raise ValueError("'time_window' must be at least 5m")
    return seconds


class UtilizationPolicy(CoreModel):
    """Ends a run one of whose GPUs is used less than this all the time."""

    min_gpu_utilization: int = Field(ge=0, le=100)
    """Percent."""
    time_window: Annotated[Duration, AfterValidator(_check_window)]
    """Seconds."""


def _parse_cron(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_cron(expressions: list[str]) -> list[str]:
    if not expressions:
        raise ValueError("'cron' needs at least one expression, such as '0 8 * * mon-fri'")
    for expression in expressions:
        CronExpression.parse(expression)
    return expressions


class Schedule(CoreModel):
    """When a run starts again and again, in UTC."""

    cron: Annotated[list[str], BeforeValidator(_parse_cron), AfterValidator(_check_cron)]
    """One expression or several, in UTC; the earliest counts. Days of the week: `mon` to `sun`, or 0 = Monday."""


def _check_tags(tags: dict[str, str]) -> dict[str, str]:
    for key, value in tags.items():
        if _TAG_KEY.fullmatch(key) is None:
            raise ValueError(
                f"{key!r} is not a tag key: 1 to 60 letters, digits, dashes and underscores are allowed"
            )
        if _TAG_VALUE.fullmatch(value) is None:
            raise ValueError(
                f"the value of tag {key!r} is not valid: up to 256 letters, digits, spaces and"
                " . : / = _ - + @ are allowed"
            )
    return tags


Tags = Annotated[dict[str, str], AfterValidator(_check_tags)]
"""Labels passed on to the cloud."""


class ProfileParams(CoreModel):
    """The fields that a profile and a run configuration share."""

    backends: list[BackendType] | None = None
    """Only these."""
    regions: list[str] | None = None
    """Only these."""
    availability_zones: list[str] | None = None
    """Only these."""
    instance_types: list[str] | None = None
    """Only these, by the names that the backend gives them."""
    reservation: str | None = None
    """A reservation at the cloud that instances are made in."""
    spot_policy: SpotPolicy | None = None
    """`spot`: only interruptible instances, `on-demand`: none of them, `auto`: both. By default `on-demand`, or
    what the fleet says."""
    retry: ProfileRetry | bool | None = None
    """`true`: retry after anything for an hour."""
    max_duration: DurationLimit = None
    """Ends a job that runs for longer; `off` for no limit."""
    stop_duration: DurationLimit = None
    """How long a job may take to end once it is asked to, before it is killed, and its volumes may take to be
    detached. By default 10 s and 5 min; `off` for no limit."""
    max_price: Annotated[float, Field(gt=0)] | None = None
    """Dollars per hour of an instance, at most."""
    creation_policy: CreationPolicy | None = None
    """`reuse`: only instances that are there; `reuse-or-create` (default): new ones too."""
    idle_duration: IdleDuration = None
    """How long a new instance stays up without work; the shorter one of this and the fleet's. `off`: for ever."""
    utilization_policy: UtilizationPolicy | None = None
    """Ends a run whose GPUs are idle."""
    startup_order: StartupOrder | None = None
    """Of the nodes of a task: all at once (`any`), or the others after the master, or before it."""
    stop_criteria: StopCriteria | None = None
    """Of the nodes of a task: it is over when all are done, or with the master."""
    schedule: Schedule | None = None
    """Starts the run again and again."""
    fleets: list[EntityReference] | None = None
    """Only these: `name` or `project/name`."""
    instances: Annotated[list[InstanceSelector], Field(min_length=1)] | None = None
    """Only these; new ones are not made then."""
    tags: Tags | None = None
    """Labels for the cloud's bill, added to the fleet's."""
    backend_options: list[VastAIProfileOptions] | None = None
    """Options of single backends."""


class Profile(ProfileParams):
    """A named set of parameters in `.dstack/profiles.yml`."""

    name: str = ""
    """What `--profile` and `$DSTACK_PROFILE` call it."""
    default: bool = False
    """Used where no profile is named."""


class ProfilesConfig(CoreModel):
    """The file `.dstack/profiles.yml`."""

    profiles: list[Profile]
    """At most one of them is the default."""

    def find(self, name: str | None) -> Profile | None:
        """The profile of that name; without a name, the one marked as default."""
        for profile in self.profiles:
            if profile.name == name or (name is None and profile.default):
                return profile
        return None


BlockCount = Literal["auto"] | Annotated[int, Field(ge=1)]
"""Into how many equal parts an instance is split; `auto`: as many as its GPUs or CPUs allow."""
