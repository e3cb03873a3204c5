"""Tables of plain columns, made to fit the terminal (80 columns where there is none)."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

GAP = 2
"""Blanks between columns where there is room; else one."""
DEFAULT_WIDTH = 80
BOLD, DIM, RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"
ELLIPSIS = "…"
MIN_COLUMN = 6
"""No column is cut to less than this."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


def use_color() -> bool:
    """Whether stdout is a terminal that may be written to in colour."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width() -> int:
    """Columns of the terminal; 80 when stdout is none and `COLUMNS` is not set."""
    return shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, keep: Sequence[str] = ("NAME",)) -> None:
    """Prints the table; cells of the columns in `keep` are cut last. Says so when cells were cut."""
    lines, is_cut = format_table(headers, rows, width=terminal_width(), keep=keep)
    if use_color():
        lines[0] = f"{BOLD}{lines[0]}{RESET}"
    for line in lines:
        print(line)
    if is_cut:
        print(f"(cells with {ELLIPSIS} are cut: a wider terminal or --json shows them whole)")


def format_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, width: int, keep: Sequence[str] = ()
) -> tuple[list[str], bool]:
    """The lines of the table, and whether any cell was cut to fit the width."""
    cells = [[_CONTROL.sub(" ", cell) for cell in row] for row in rows]
    natural = [max([len(header), *(len(row[column]) for row in cells)]) for column, header in enumerate(headers)]
    gap = GAP if sum(natural) + GAP * (len(headers) - 1) <= width else 1
    widths = _fit(natural, width - gap * (len(headers) - 1), [header in keep for header in headers])
    lines = [_format_row(row, widths, gap) for row in [list(headers), *cells]]
    return lines, widths != natural


def _fit(natural: list[int], available: int, is_kept: list[bool]) -> list[int]:
    """Takes from the widest column first, from those to be kept only when the others are at their least."""
    widths = list(natural)
    for candidates in ([not kept for kept in is_kept], [True] * len(widths)):
        while sum(widths) > available:
            widest = max(
                (column for column, may in enumerate(candidates) if may and widths[column] > MIN_COLUMN),
                key=lambda column: widths[column],
                default=None,
            )
            if widest is None:
                break
            widths[widest] -= 1
    return widths


def _format_row(row: Sequence[str], widths: Sequence[int], gap: int) -> str:
    cells = [_cut(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)]
    return (" " * gap).join(cells).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + ELLIPSIS


def print_notes(notes: Sequence[str]) -> None:
    """Prints texts of any length below a table, after an empty line; none, nothing."""
    for number, note in enumerate(notes):
        text = _CONTROL.sub(" ", note)
        filled = textwrap.fill(text, terminal_width(), subsequent_indent="  ", break_on_hyphens=False)
        print(filled if number else f"\n{filled}")


def print_properties(properties: Sequence[tuple[str, str]]) -> None:
    """Prints names and values, one pair a line."""
    name_width = max(len(name) for name, _ in properties)
    for name, value in properties:
        label = f"{BOLD}{name.ljust(name_width)}{RESET}" if use_color() else name.ljust(name_width)
        print(f" {label}  {value}".rstrip())
