"""Builds the agent as one file: `python -m dstack.agent.bundle PATH`.

The file is a zipapp of this package alone. The same sources give the same bytes.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from typing import Iterator, List, Tuple

from dstack import __version__
from dstack.agent.files import write_atomically

INTERPRETER = b"#!/usr/bin/env python3\n"
_DATE = (1980, 1, 1, 0, 0, 0)
_MAIN = """import sys

import dstack.agent.without_openssl
from dstack.agent.main import main

sys.exit(main())
"""


def build(path: str) -> None:
    """Writes the zipapp to `path`, executable."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in _members():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
    write_atomically(os.path.abspath(path), INTERPRETER + content.getvalue())
    os.chmod(path, 0o755)


def _members() -> Iterator[Tuple[str, str]]:
    """(name in the archive, text) of each module, in an order that is always the same."""
    yield "__main__.py", _MAIN
    yield "dstack/__init__.py", f'__version__ = "{__version__}"\n'
    root = os.path.dirname(os.path.abspath(__file__))
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py") and name not in ("bundle.py", "simulator.py"):
                source = os.path.join(folder, name)
                with open(source, encoding="utf-8") as file:
                    yield os.path.join("dstack/agent", os.path.relpath(source, root)), file.read()


def main(arguments: List[str]) -> int:
    """`PATH` is the only argument."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m dstack.agent.bundle PATH\n")
        return 2
    build(arguments[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
