"""Backends by name. A backend's module, and so its SDK, is imported when the backend is first used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstack.backends.base import Backend
from dstack.core.backends import LOCAL
from dstack.core.errors import BackendNotAvailable

MODULES = {LOCAL: "dstack.backends.local.backend", "fake": "dstack.backends.fake.backend"}
"""Each module has `create(settings, context) -> Backend`, which raises InvalidRequest for bad settings."""


@dataclass(frozen=True)
class BackendContext:
    """What a backend may use of the server: a folder of its own kind for what must outlive the process."""

    hosts_dir: Path


def create(type_name: str, settings: Mapping[str, Any], context: BackendContext) -> Backend:
    """The backend of that type with these settings (credentials included).

    Raises BackendNotAvailable for a type that this server does not have.
    """
    module_name = MODULES.get(type_name)
    if module_name is None:
        known = ", ".join(sorted(MODULES))
        raise BackendNotAvailable(f"Backend {type_name!r} is not available on this server; it has {known}")
    backend: Backend = importlib.import_module(module_name).create(settings, context)
    return backend
