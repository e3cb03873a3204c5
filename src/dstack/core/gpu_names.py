"""What GPUs are called: by their makers' tools, by clouds, and in configurations. Pure."""

from __future__ import annotations

import re

_BRANDS = frozenset({"nvidia", "geforce", "tesla", "quadro", "amd", "instinct", "radeon", "intel"})
"""Words that a name may begin with and that nobody writes in a configuration."""
_COMPUTE_CAPABILITIES = {
    (6, 0): "p100",
    (6, 1): "p4 p6 p40",
    (7, 0): "v100",
    (7, 5): "t4 rtx2060 rtx2070 rtx2080 rtx2080ti",
    (8, 0): "a100 a30",
    (8, 6): "a2 a10 a10g a16 a40 a4000 a4500 a5000 a5500 a6000 rtxa4000 rtxa4500 rtxa5000 rtxa5500 rtxa6000"
    " rtx3060 rtx3070 rtx3080 rtx3090",
    (8, 9): "l4 l40 l40s rtx4060 rtx4070 rtx4080 rtx4090 rtx4000ada rtx5000ada rtx6000ada",
    (9, 0): "h100 h200 gh200",
    (10, 0): "b200 gb200",
    (10, 3): "b300 gb300",
    (12, 0): "rtx5060 rtx5070 rtx5080 rtx5090 rtxpro6000",
}
_CAPABILITY_OF = {
    name: capability for capability, names in _COMPUTE_CAPABILITIES.items() for name in names.split()
}


def names_of(full_name: str) -> list[str]:
    """What the GPU may be called, shortest first, folded: `NVIDIA A100-SXM4-80GB` is `a100`, `a100sxm4`, …"""
    words = [word for word in re.split(r"[^a-z0-9]+", full_name.lower()) if word and word not in _BRANDS]
    return ["".join(words[: count + 1]) for count in range(len(words))]


def is_called(full_name: str, wanted: str) -> bool:
    """Whether somebody who writes `wanted` in a configuration may be given this GPU."""
    folded = names_of(wanted)
    return bool(folded) and folded[-1] in names_of(full_name)


def compute_capability(full_name: str) -> tuple[int, int] | None:
    """Of an NVIDIA GPU; None where it is not known."""
    known = [_CAPABILITY_OF[name] for name in names_of(full_name) if name in _CAPABILITY_OF]
    return known[-1] if known else None
