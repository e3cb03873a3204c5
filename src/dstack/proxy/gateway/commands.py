"""Running the host's programs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dstack.proxy.gateway.errors import GatewayError

TIMEOUT_S = 60.0


async def run(command: Sequence[str], *, stdin: bytes = b"", timeout: float = TIMEOUT_S) -> str:
    """Its output. Raises GatewayError with what it said when it fails or takes too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            # A pipe that a quick program has closed already is an error to uvloop.
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise GatewayError(f"`{command[0]}` cannot be run: {error.strerror}") from error
    try:
        out, _ = await asyncio.wait_for(process.communicate(stdin or None), timeout)
    except asyncio.TimeoutError:
        raise GatewayError(f"`{command[0]}` did not end within {timeout:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = out.decode(errors="replace").strip()
    if process.returncode:
        raise GatewayError(text or f"`{' '.join(command)}` ended with {process.returncode}")
    return text
