"""What people write in `gpu:` and what the makers' tools print are the same GPUs."""

from __future__ import annotations

import pytest

from dstack.core.gpu_names import compute_capability, is_called


@pytest.mark.parametrize(
    ("full_name", "wanted", "is_it"),
    [
        ("H100", "H100", True),
        ("H100 80GB HBM3", "h100", True),
        ("NVIDIA A100-SXM4-80GB", "A100", True),
        ("GeForce RTX 4090", "RTX4090", True),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", True),
        ("RTX 6000 Ada Generation", "RTX6000Ada", True),
        ("Tesla T4", "T4", True),
        ("AMD Instinct MI300X", "MI300X", True),
        ("A1000", "A100", False),
        ("A100", "A10", False),
        ("L40S", "L40", False),
        ("L40S", "L4", False),
    ],
)
def test_name(full_name: str, wanted: str, is_it: bool) -> None:
    assert is_called(full_name, wanted) is is_it


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("H100 80GB HBM3", (9, 0)),
        ("A100-SXM4-40GB", (8, 0)),
        ("GeForce RTX 3090", (8, 6)),
        ("RTX 6000 Ada Generation", (8, 9)),
        ("A10G", (8, 6)),
        ("Tesla T4", (7, 5)),
        ("MI300X", None),
    ],
)
def test_compute_capability(name: str, capability: tuple[int, int] | None) -> None:
    assert compute_capability(name) == capability
