"""What is installed on gateway hosts: this server's own version of the package.

For hosts that reach no package index, also everything that it needs, packed again from what is installed here.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import dstack
from dstack.core.errors import HostUnfit

EXTRA = "gateway"
TAG = "py3-none-any"
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA_MARKER = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_FOLDER = Path(dstack.__file__).parent


class Wheel(NamedTuple):
    """A wheel's file name and content."""

    name: str
    content: bytes


def platform() -> str:
    """What a host must have in common with this server to take its packages."""
    return f"{sys.version_info[0]}.{sys.version_info[1]} {sysconfig.get_platform()}"


def own_wheel() -> Wheel:
    """Of the files that this server itself runs from."""
    files = {
        f"dstack/{path.relative_to(_FOLDER).as_posix()}": path.read_bytes()
        for path in sorted(_FOLDER.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    lines = ["Metadata-Version: 2.1", "Name: dstack", f"Version: {dstack.__version__}", f"Provides-Extra: {EXTRA}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in _own_requirements()]
    return _wheel("dstack", dstack.__version__, TAG, files, {"METADATA": "\n".join([*lines, ""]).encode()})


def _own_requirements() -> list[str]:
    """Of the package and of its extra for gateways. Raises HostUnfit where nothing tells them."""
    try:
        declared = metadata.distribution("dstack").requires or []
    except metadata.PackageNotFoundError:
        return _requirements_of_checkout()
    return [text for text in declared if _extra_of(text) in (None, EXTRA)]


def _requirements_of_checkout() -> list[str]:
    """Of a checkout that runs without being installed."""
    project = _FOLDER.parents[1] / "pyproject.toml"
    if sys.version_info < (3, 11) or not project.exists():
        raise HostUnfit("This server cannot tell what its package needs: install it, as by `pip install -e .`")
    import tomllib  # noqa: PLC0415 - since Python 3.11

    declared = tomllib.loads(project.read_text())["project"]
    extra = [f"{text}; extra == '{EXTRA}'" for text in declared["optional-dependencies"][EXTRA]]
    return [*declared["dependencies"], *extra]


def wheelhouse() -> bytes:
    """A tar archive of the wheels of all that the gateway app needs. Raises HostUnfit where one cannot be made."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for distribution in _needed():
            wheel = repack(distribution)
            entry = tarfile.TarInfo(wheel.name)
            entry.size = len(wheel.content)
            archive.addfile(entry, io.BytesIO(wheel.content))
    return packed.getvalue()


def _needed() -> Iterator[metadata.Distribution]:
    """What is installed of the requirements, and of theirs; markers of other systems name what is not."""
    waiting = [(text, frozenset({EXTRA})) for text in _own_requirements()]
    seen: set[tuple[str, frozenset[str]]] = set()
    given: set[str] = set()
    while waiting:
        text, active = waiting.pop()
        match = _NAME.match(text)
        extra = _extra_of(text)
        if match is None or (extra is not None and extra not in active):
            continue
        name, extras = match[1], frozenset(part.strip() for part in (match[2] or "").split(",") if part.strip())
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        waiting += [(required, extras) for required in distribution.requires or ()]
        if distribution.name not in given:
            given.add(distribution.name)
            yield distribution


def _extra_of(requirement: str) -> str | None:
    found = _EXTRA_MARKER.search(requirement.partition(";")[2])
    return None if found is None else found[1]


def repack(distribution: metadata.Distribution) -> Wheel:
    """The wheel that an installed distribution came from, but for its scripts. Raises HostUnfit."""
    name, version = distribution.name, distribution.version
    listed = distribution.files
    if listed is None:
        raise HostUnfit(
            f"This server cannot tell which files {name} {version} consists of: install it from a wheel"
        )
    files = {path.as_posix(): path for path in map(PurePosixPath, listed) if _is_content(path)}
    info = next((PurePosixPath(path).parts[0] for path in files if path.endswith(".dist-info/METADATA")), None)
    if info is None:
        raise HostUnfit(f"This server cannot pack {name} {version} for gateway hosts: install it from a wheel")
    skipped = {f"{info}/{own}" for own in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")}
    content = {
        path: Path(str(distribution.locate_file(path))).read_bytes() for path in files if path not in skipped
    }
    tags = re.findall(r"^Tag: *(\S+)", content[f"{info}/WHEEL"].decode(), re.MULTILINE)
    return Wheel(f"{info.removesuffix('.dist-info')}-{_joined(tags)}.whl", _zipped(content, info))


def _is_content(path: PurePosixPath) -> bool:
    return ".." not in path.parts and not path.is_absolute() and path.suffix != ".pyc"


def _joined(tags: Iterable[str]) -> str:
    """As in file names: `py2.py3-none-any` for `py2-none-any` and `py3-none-any`."""
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    return "-".join(".".join(dict.fromkeys(part)) for part in parts)


def _wheel(name: str, version: str, tag: str, files: dict[str, bytes], about: dict[str, bytes]) -> Wheel:
    info = f"{name}-{version}.dist-info"
    head = f"Wheel-Version: 1.0\nGenerator: {name}\nRoot-Is-Purelib: true\nTag: {tag}\n"
    about = {**about, "WHEEL": head.encode()}
    content = {**files, **{f"{info}/{path}": data for path, data in about.items()}}
    return Wheel(f"{name}-{version}-{tag}.whl", _zipped(content, info))


def _zipped(files: dict[str, bytes], info: str) -> bytes:
    """With the RECORD that wheels must have."""
    packed, record = io.BytesIO(), io.StringIO()
    lines = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, data in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.writerow([path, f"sha256={digest}", len(data)])
            archive.writestr(path, data)
        lines.writerow([f"{info}/RECORD", "", ""])
        archive.writestr(f"{info}/RECORD", record.getvalue())
    return packed.getvalue()
