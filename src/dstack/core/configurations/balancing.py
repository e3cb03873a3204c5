"""Which replica of a service gets a request. An addition to the reference, sent only where it is set."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from dstack.core.models import CoreModel

DEFAULT_PREFIX_LENGTH = 1024
MAX_PREFIX_LENGTH = 16384
DEFAULT_LOAD_FACTOR = 1.25


class RandomBalancing(CoreModel):
    """Any replica."""

    policy: Literal["random"]
    """The default."""


class LeastRequestsBalancing(CoreModel):
    """The replica with the fewest requests at work."""

    policy: Literal["least_requests"]
    """For requests that take differently long."""


class PrefixBalancing(CoreModel):
    """Prompts that begin alike go to the same replica, which has their beginning in its cache."""

    policy: Literal["prefix"]
    """For language models."""
    prefix_length: int = Field(default=DEFAULT_PREFIX_LENGTH, ge=1, le=MAX_PREFIX_LENGTH)
    """How many characters of the prompt count, up to the end of the first message of the user."""
    load_factor: float = Field(default=DEFAULT_LOAD_FACTOR, ge=1, le=100)
    """How many times the mean number of requests a replica may have at work before others take over."""


class SessionBalancing(CoreModel):
    """Requests of a session go to the same replica."""

    policy: Literal["session"]
    """For programs that keep state."""
    header: str | None = Field(default=None, max_length=500, pattern=r"^[a-zA-Z0-9-_]+$")
    """Name of the header that names the session."""
    cookie: str | None = Field(default=None, max_length=500, pattern=r"^[a-zA-Z0-9-_]+$")
    """Name of a cookie that the proxy sets."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.header is None) == (self.cookie is None):
            raise ValueError("balancing by session needs either a 'header' or a 'cookie'")
        return self


def _expand(value: Any) -> Any:
    return {"policy": value} if isinstance(value, str) else value


Balancing = Annotated[
    Annotated[
        RandomBalancing | LeastRequestsBalancing | PrefixBalancing | SessionBalancing,
        Field(discriminator="policy"),
    ],
    BeforeValidator(_expand),
]
