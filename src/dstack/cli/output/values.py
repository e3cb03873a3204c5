"""Values of the API in words: times, prices, resources, backends."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

Document = Mapping[str, Any]

_UNITS = ((7 * 86400, "week"), (86400, "day"), (3600, "hour"), (60, "min"))


def parse_time(text: str) -> datetime:
    """The moment of an ISO 8601 text."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def format_age(text: str | None, now: datetime) -> str:
    """How long ago the moment was, such as `2 mins ago`."""
    if not text:
        return ""
    seconds = int((now - parse_time(text)).total_seconds())
    for size, unit in _UNITS:
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now" if seconds < 10 else f"{seconds} secs ago"


def now_utc() -> datetime:
    """The current moment."""
    return datetime.now(timezone.utc)


def format_price(price: float | None) -> str:
    """Dollars an hour."""
    return "" if price is None else f"${price:.4g}"


def format_backend(backend: str | None, region: str | None) -> str:
    """`aws (us-east-1)`; the wire says `remote` of SSH hosts and of the machine of the server (region `local`)."""
    if backend is None:
        return ""
    if backend == "remote":
        backend = "local" if region == "local" else "ssh"
        if backend == region:
            return backend
    return f"{backend} ({region})" if region else backend


def format_pulling(progress: Document | None) -> str:
    """` (12MB of 40MB, 3MB unpacked)` for the `image_pull_progress` of a submission; else nothing."""
    if progress is None or not progress["total_bytes"]:
        return ""
    got, unpacked, total = (
        format_size(progress[name] // 2**20) for name in ("downloaded_bytes", "extracted_bytes", "total_bytes")
    )
    least = "" if progress["is_total_bytes_final"] else "at least "
    return f" ({got} of {least}{total}, {unpacked} unpacked)"


def format_trigger(run: Document) -> str:
    """` (starts at 2026-03-01 09:00)`, in the time of this machine, for a run that waits for its schedule."""
    at = run.get("next_triggered_at")
    if not at or run["status"] != "pending":
        return ""
    return f" (starts at {parse_time(at).astimezone():%Y-%m-%d %H:%M})"


def format_size(mebibytes: float) -> str:
    """`16GB`, `512MB`."""
    return f"{mebibytes:g}MB" if mebibytes < 1024 else f"{round(mebibytes / 1024, 1):g}GB"


def format_seconds(seconds: float) -> str:
    """`12ms`, `1.50s`, `75s`."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g}ms"
    return f"{seconds:.2f}s" if seconds < 10 else f"{seconds:.0f}s"


def format_gpus(gpus: list[Document]) -> str:
    """`A100:80GB:2`; several kinds are joined by commas."""
    counts: dict[tuple[str, int], int] = {}
    for gpu in gpus:
        key = (gpu["name"], gpu["memory_mib"])
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{name}:{format_size(memory)}:{count}" for (name, memory), count in counts.items())


def format_resources(resources: Document) -> str:
    """What an instance has: `cpu=4 mem=16GB disk=100GB A100:80GB:1`."""
    arch = "arm:" if resources.get("cpu_arch") == "arm" else ""
    words = [
        f"cpu={arch}{resources['cpus']}",
        f"mem={format_size(resources['memory_mib'])}",
        f"disk={format_size(resources['disk']['size_mib'])}",
    ]
    gpus = format_gpus(resources["gpus"])
    return " ".join([*words, gpus] if gpus else words)


def format_spot(resources: Document) -> str:
    """Whether an instance is one that the cloud may take back."""
    return "spot" if resources["spot"] else "on-demand"


def format_range(value: Document | None, unit: str = "") -> str:
    """`2..8`, `2..`, `4`."""
    if value is None:
        return ""
    low, high = value.get("min"), value.get("max")
    ends = ["" if end is None else f"{end:g}{unit}" for end in (low, high)]
    return ends[0] if low == high else "..".join(ends)


def format_requirements(resources: Document) -> str:
    """What a run needs: `cpu=2.. mem=8GB.. disk=100GB.. gpu=A100:80GB:1`."""
    cpu = resources["cpu"]
    arch = "arm:" if cpu.get("arch") == "arm" else ""
    words = [f"cpu={arch}{format_range(cpu['count'])}", f"mem={format_range(resources['memory'], 'GB')}"]
    if resources.get("disk"):
        words.append(f"disk={format_range(resources['disk']['size'], 'GB')}")
    gpu = resources.get("gpu")
    if gpu and gpu["count"].get("max") != 0 and (gpu["count"].get("min") or gpu.get("name") or gpu.get("memory")):
        parts = [
            ",".join(gpu.get("name") or []),
            format_range(gpu.get("memory"), "GB"),
            format_range(gpu["count"]),
        ]
        words.append("gpu=" + ":".join(part for part in parts if part))
    return " ".join(words)
