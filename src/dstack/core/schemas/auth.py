"""`/api/auth`."""

from __future__ import annotations

from dstack.core.models import CoreModel


class OAuthProviderInfo(CoreModel):
    """A way to log in."""

    name: str
    enabled: bool


class OAuthGetNextRedirectRequest(CoreModel):
    """What the provider sent back."""

    code: str
    state: str


class OAuthGetNextRedirectResponse(CoreModel):
    """Where the browser goes next."""

    redirect_url: str | None = None
