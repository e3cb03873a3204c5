"""Presets as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from dstack.cli.output.values import format_age
from dstack.cli.presets.sessions import RUNNING, Session


def preset_headers(*, verbose: bool) -> list[str]:
    """The columns of `preset list`."""
    return [
        "NAME",
        "ID",
        "BASE",
        "CONSTRAINTS",
        "BENCHMARK",
        "STATUS",
        "SUBMITTED",
        *(["ERROR"] if verbose else []),
    ]


def preset_row(session: Session, headers: Sequence[str], now: datetime, *, verbose: bool) -> list[str]:
    """What is known of one."""
    cells = {
        "NAME": session.name,
        "ID": session.id,
        "BASE": session.wanted.model_name,
        "CONSTRAINTS": _constraints(session, verbose=verbose),
        "BENCHMARK": _benchmark(session),
        "STATUS": _status(session),
        "SUBMITTED": format_age(session.created_at, now),
        "ERROR": session.error or "",
    }
    return [cells[header] for header in headers]


def _constraints(session: Session, *, verbose: bool) -> str:
    wanted = session.wanted
    load = wanted.dataset or f"io={_thousands(wanted.input_size)}/{_thousands(wanted.output_size)}"
    words = [load, f"c={wanted.concurrency}"]
    if verbose:
        words += [f"ctx>={_thousands(wanted.min_context_length or 0)}", f"ttft<={wanted.max_ttft}ms"]
    return " ".join(words)


def _thousands(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens % 1024 == 0 and tokens else str(tokens)


def _benchmark(session: Session) -> str:
    if session.report is None:
        return ""
    measured = session.report["benchmark"]
    return f"{measured['output_tok_per_s']:.4g} tok/s ttft={measured['ttft_ms_p50']:.4g}ms"


def _status(session: Session) -> str:
    status = session.shown_status()
    is_over = session.status != RUNNING and session.report is not None
    return status if is_over else f"{status} ({session.measured()}/{session.wanted.trials})"
