"""`wrk` as a load generator."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
MEGABYTES = {"B": 1 / 1048576, "KB": 1 / 1024, "MB": 1.0, "GB": 1024.0}


@dataclass(frozen=True)
class Load:
    """What came of it: requests per second, milliseconds, MB per second of answers."""

    rate: float
    p50: float
    p99: float
    megabytes: float


def command(url: str, token: str, connections: int, seconds: float, script: Path | None = None) -> list[str]:
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed")
    flags = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "--timeout", "30s"]
    if script is not None:
        flags += ["-s", str(script)]
    return [*flags, "-H", f"Authorization: Bearer {token}", url]


def load(url: str, token: str, connections: int, seconds: float, script: Path | None = None) -> Load:
    """Raises RuntimeError where a request failed."""
    arguments = command(url, token, connections, seconds, script)
    return parse(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def parse(text: str) -> Load:
    """Of what `wrk` prints. Raises RuntimeError where a request failed."""
    if "Non-2xx" in text or "Socket errors" in text or "Requests/sec" not in text:
        raise RuntimeError(f"not every request was answered well:\n{text}")
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0])
    p50, p99 = (_scaled(re.findall(rf"{p}%\s+([\d.]+\w+)", text)[0], MILLISECONDS) for p in (50, 99))
    return Load(rate, p50, p99, _scaled(re.findall(r"Transfer/sec:\s+([\d.]+\w+)", text)[0], MEGABYTES))


def upload_script(folder: Path, megabytes: int) -> Path:
    """Makes every request a POST of that size."""
    script = folder / "upload.lua"
    script.write_text(f'wrk.method = "POST"\nwrk.body = string.rep("x", {megabytes} * 1048576)\n')
    return script


def differing_script(folder: Path) -> Path:
    """No two requests alike, neither in their target nor in their fields."""
    script = folder / "differing.lua"
    script.write_text(
        "local count = 0\n"
        "request = function()\n"
        "  count = count + 1\n"
        '  return wrk.format("GET", wrk.path .. "?n=" .. count, {["X-Request-Id"] = tostring(count), '
        '["Authorization"] = wrk.headers["Authorization"]})\n'
        "end\n"
    )
    return script


def _scaled(text: str, units: dict[str, float]) -> float:
    match = re.fullmatch(r"([\d.]+)(\D+)", text)
    assert match is not None, text
    return float(match[1]) * units[match[2]]
