"""GPUs on offer, grouped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dstack.cli.output.tables import print_table
from dstack.cli.output.values import format_backend, format_range, format_size

Document = Mapping[str, Any]


def print_gpus(gpus: Sequence[Document], groups: Sequence[str]) -> None:
    """Prints one row a group; BACKEND and REGION are single where they are grouped by."""
    if not gpus:
        print("No offers.")
        return
    backend = ["BACKEND" if "backend" in groups else "BACKENDS"]
    region = ["REGION" if "region" in groups else "REGIONS"] if "backend" in groups else []
    headers = ["#", "GPU", "SPOT", "$/GPU", *backend, *region]
    rows = [[str(number), *_cells(gpu, headers)] for number, gpu in enumerate(gpus, start=1)]
    print_table(headers, rows, keep=("#", "GPU"))


def _cells(gpu: Document, headers: Sequence[str]) -> list[str]:
    cells = {
        "GPU": f"{gpu['name']}:{format_size(gpu['memory_mib'])}:{format_range(gpu['count'])}",
        "SPOT": ", ".join(gpu["spot"]),
        "$/GPU": format_range(gpu["price"]),
        "BACKEND": format_backend(gpu.get("backend"), None),
        "BACKENDS": ", ".join(format_backend(backend, None) for backend in gpu.get("backends") or []),
        "REGION": gpu.get("region") or "",
        "REGIONS": ", ".join(gpu.get("regions") or []),
    }
    return [cells[header] for header in headers[1:]]
