"""`/api/sshproxy`."""

from __future__ import annotations

from dstack.core.models import CoreModel


class GetUpstreamRequest(CoreModel):
    """A job by its id at the SSH proxy."""

    id: str


class UpstreamHost(CoreModel):
    """A host on the way to the job."""

    host: str
    port: int
    user: str
    private_key: str


class GetUpstreamResponse(CoreModel):
    """The way to the job, and whose keys open it."""

    hosts: list[UpstreamHost]
    authorized_keys: list[str]
