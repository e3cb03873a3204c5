"""Certificates: obtained by certbot for one domain at a time, renewed by its own timer."""

from __future__ import annotations

import asyncio

from dstack.proxy.gateway.commands import run
from dstack.proxy.gateway.errors import GatewayError
from dstack.proxy.gateway.models import ACMESettings
from dstack.proxy.gateway.settings import GatewaySettings

TIMEOUT_S = 45.0


class Certificates:
    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._running = asyncio.Lock()  # certbot itself allows one at a time

    async def obtain(self, domain: str, acme: ACMESettings) -> None:
        """There is a good one afterwards. Raises GatewayError with what certbot said."""
        command = [*self._settings.privilege, *self._settings.certbot, *_arguments(self._settings, domain, acme)]
        async with self._running:
            await run([*self._settings.privilege, "mkdir", "-p", str(self._settings.acme_webroot)])
            try:
                await run(command, timeout=TIMEOUT_S)
            except GatewayError as error:
                raise GatewayError(
                    f"No certificate for {domain}: {error}. The name must resolve to this gateway, and its port "
                    f"{self._settings.http_port} must be open to the certificate authority"
                ) from error


def _arguments(settings: GatewaySettings, domain: str, acme: ACMESettings) -> list[str]:
    reload = " ".join(settings.nginx_reload)
    arguments = ["certonly", "--non-interactive", "--agree-tos", "--register-unsafely-without-email", "--quiet"]
    arguments += [
        "--keep",
        "--webroot",
        "-w",
        str(settings.acme_webroot),
        "--deploy-hook",
        reload,
        "--domain",
        domain,
    ]
    if acme.server is not None:
        arguments += ["--server", acme.server]
    if acme.eab_kid is not None and acme.eab_hmac_key is not None:
        arguments += ["--eab-kid", acme.eab_kid, "--eab-hmac-key", acme.eab_hmac_key]
    return arguments


async def make_unknown_host_certificate(settings: GatewaySettings) -> None:
    """What hosts that nobody published are answered with. Raises GatewayError."""
    certificate, key = settings.dir / "unknown-host.crt", settings.dir / "unknown-host.key"
    if certificate.exists() and key.exists():
        return
    subject = ["-subj", "/CN=unknown host", "-days", "3650"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    await run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *files])
