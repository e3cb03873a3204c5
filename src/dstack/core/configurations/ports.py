"""Ports of a job."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from dstack.core.models import CoreModel

Port = Annotated[int, Field(gt=0, le=65535)]


class PortMapping(CoreModel):
    """A port of the job and the local port it is forwarded to. Short forms: `8080`, `80:8080`, `*:8080` (any)."""

    local_port: Port | None = None
    """Where it is forwarded to; any free one without it."""
    container_port: Port
    """Where the job listens."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, int):
            return {"local_port": value, "container_port": value}
        if isinstance(value, str):
            return _parse(value)
        return value


def _parse(text: str) -> dict[str, int | None]:
    local, colon, container = text.rpartition(":")
    if not container.isdecimal() or (colon and local != "*" and not local.isdecimal()):
        raise ValueError(f"{text!r} is not a port mapping: write '8080', '80:8080' or '*:8080'")
    if local == "*":
        return {"local_port": None, "container_port": int(container)}
    return {"local_port": int(local or container), "container_port": int(container)}
