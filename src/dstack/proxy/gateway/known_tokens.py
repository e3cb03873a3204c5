"""The tokens that nginx lets in without asking: empty files that it looks for under a name that says the time.

`<kind>/<slot>/<project>@<value of the Authorization header>`, where a slot is ten seconds of the clock. nginx
looks only into the present slot, so that a token ends at its time whatever becomes of the app. Only root and the
app can list the folders; nginx's workers can but look for a name.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

SLOT_S = 10
FRESH_SLOTS = 3
"""A token is used without asking for 20 to 30 s after the server allowed it; then the server is asked again."""
KNOWN_SLOTS = 6
"""Where the app does not answer, it still is for 50 to 60 s after the server allowed it."""
FRESH, KNOWN = "fresh", "known"

_NAMEABLE = re.compile(r"[!-.0-~][ -.0-~]{0,149}", re.ASCII)
"""What can be part of a file's name. About others the app is asked, unless nginx's cache holds its answer."""


class KnownTokens:
    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now

    def remember(self, project: str, authorization: str, allowed_at: float) -> None:
        """`allowed_at` is when the server was asked, in seconds since 1970."""
        if not _NAMEABLE.fullmatch(authorization):
            return
        for file in self._files(project, authorization, int(allowed_at // SLOT_S)):
            _make_folder(file.parent)
            file.touch(mode=0o644)  # nginx's workers open what they keep in their cache of files

    def forget(self, project: str, authorization: str) -> None:
        """At once, but for the second that nginx may not look again."""
        if _NAMEABLE.fullmatch(authorization):
            present = int(self._now() // SLOT_S)
            for slot in range(present - KNOWN_SLOTS, present + 1):
                for file in self._files(project, authorization, slot):
                    file.unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes the slots that are over."""
        present = int(self._now() // SLOT_S)
        for kind in (FRESH, KNOWN):
            _make_folder(self._folder / kind)
            for slot in (self._folder / kind).iterdir():
                if not slot.name.isdigit() or int(slot.name) < present:
                    shutil.rmtree(slot, ignore_errors=True)

    def _files(self, project: str, authorization: str, slot: int) -> list[Path]:
        name = f"{project}@{authorization}"
        fresh = [self._folder / FRESH / str(slot + number) / name for number in range(FRESH_SLOTS)]
        return fresh + [self._folder / KNOWN / str(slot + number) / name for number in range(KNOWN_SLOTS)]


def _make_folder(path: Path) -> None:
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
