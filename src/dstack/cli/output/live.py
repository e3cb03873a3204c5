"""Output that changes in place: on a terminal only; elsewhere it is plain lines."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

CLEAR_LINE = "\r\x1b[2K"
HOME_AND_CLEAR = "\x1b[H\x1b[J"
POLL_INTERVAL = 2.0
"""Seconds between two looks at a server that cannot tell of changes."""
FRAME_INTERVAL = 0.1
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def wait_a_while() -> None:
    """Waits until it is worth asking the server again."""
    time.sleep(POLL_INTERVAL)


class LiveText:
    """A text that replaces the one before it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    @contextlib.contextmanager
    def redrawn(self) -> Iterator[None]:
        """What is printed inside takes the place of what was there."""
        buffer = io.StringIO()
        is_terminal = self._out.isatty()
        with contextlib.redirect_stdout(_Tee(buffer, self._out)):
            yield
        self._out.write((HOME_AND_CLEAR if is_terminal else "") + buffer.getvalue())
        self._out.flush()


class _Tee(io.TextIOBase):
    """Collects text but answers for the terminal, so that colours and widths are those of the terminal."""

    def __init__(self, buffer: io.StringIO, out: TextIO) -> None:
        self._buffer = buffer
        self._out = out

    def write(self, text: str) -> int:
        return self._buffer.write(text)

    def isatty(self) -> bool:
        return self._out.isatty()


def show(draw: Callable[[], None], *, watch: bool) -> None:
    """Calls `draw`, which prints; with `watch`, again and again, each text in the place of the one before."""
    if not watch:
        draw()
        return
    live = LiveText(sys.stdout)
    while True:
        with live.redrawn():
            draw()
        wait_a_while()


class Status:
    """One line that says what is going on, with a spinner on a terminal; elsewhere each new text is a line."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._text = ""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def show(self, text: str, detail: str = "") -> None:
        """Replaces the text. `detail` changes all the time: it is shown on a terminal only."""
        text += detail if self._out.isatty() else ""
        with self._lock:
            if text == self._text:
                return
            self._text = text
        if not self._out.isatty():
            print(text, file=self._out, flush=True)
        elif self._thread is None:
            self._stopped.clear()
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()

    def clear(self) -> None:
        """Removes the line, before something else is printed."""
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()
            self._thread = None
            self._out.write(CLEAR_LINE)
            self._out.flush()
        self._text = ""

    def _spin(self) -> None:
        for frame in itertools.cycle(FRAMES):
            with self._lock:
                self._out.write(f"{CLEAR_LINE}{frame} {self._text}")
                self._out.flush()
            if self._stopped.wait(FRAME_INTERVAL):
                return
