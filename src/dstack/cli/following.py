"""Following a run: its changes and its log, from streams, or by asking again and again where a server has none."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Generator
from typing import Any, Protocol

from dstack.api.errors import NotSupported, ServerUnreachable
from dstack.cli.context import Context

FIRST_POLLS = 5
FAST_INTERVAL, SLOW_INTERVAL = 1.0, 5.0
LOG_INTERVAL = 1.0
"""Seconds."""
MAX_BREAKS = 3
"""Breaks of a stream in a row, without anything arriving between them, after which it is given up."""

FINISHED = ("terminated", "failed", "done")

Document = dict[str, Any]


class ByteSink(Protocol):
    """Where the bytes of a log go."""

    def write(self, data: bytes, /) -> object:
        """Takes all of the bytes."""

    def flush(self) -> object:
        """Shows what was written."""


def iter_changes(context: Context, run_name: str) -> Generator[Document, None, None]:
    """The run as it is now and at each change. Endless."""
    try:
        yield from _watch(context, run_name)
    except NotSupported:
        yield from _poll(context, run_name)


def copy_log(
    context: Context, run_name: str, submission_id: str, out: ByteSink, *, start_time: str | None = None
) -> None:
    """Writes the log of a job as it grows, until it is complete."""
    sys.stdout.flush()
    try:
        _copy_stream(context, run_name, submission_id, out, start_time)
    except NotSupported:
        _copy_pages(context, run_name, submission_id, out, start_time)


def print_stored_log(
    context: Context,
    run_name: str,
    submission_id: str,
    out: ByteSink,
    *,
    start_time: str | None = None,
    diagnose: bool = False,
) -> None:
    """Writes what is stored of a job's log."""
    sys.stdout.flush()
    token: str | None = None
    while True:
        page = context.rest.logs.poll(
            context.project, run_name, submission_id, start_time=start_time, next_token=token, diagnose=diagnose
        )
        for entry in page["logs"]:
            write_entry(entry, out)
        token = page["next_token"]
        if token is None:
            return


def write_entry(entry: Document, out: ByteSink) -> None:
    """Writes the bytes of a log entry."""
    out.write(base64.b64decode(entry["message"]))
    out.flush()


def _watch(context: Context, run_name: str) -> Generator[Document, None, None]:
    breaks = 0
    while True:
        try:
            with context.rest.runs.watch(context.project, run_name) as lines:
                for line in lines:
                    breaks = 0
                    if line["type"] == "run":
                        yield line["run"]
            raise ServerUnreachable("The server ended the stream of changes")
        except ServerUnreachable as error:
            breaks = _pause_after_break(breaks, error)


def _pause_after_break(breaks: int, error: ServerUnreachable) -> int:
    """Waits before the next try and counts the break. Raises the error when there were too many."""
    if breaks == MAX_BREAKS:
        raise error
    time.sleep(FAST_INTERVAL)
    return breaks + 1


def _poll(context: Context, run_name: str) -> Generator[Document, None, None]:
    polls = 0
    while True:
        yield context.rest.runs.get(context.project, name=run_name)
        polls += 1
        time.sleep(FAST_INTERVAL if polls < FIRST_POLLS else SLOW_INTERVAL)


def _copy_stream(
    context: Context, run_name: str, submission_id: str, out: ByteSink, start_time: str | None
) -> None:
    """After a break it goes on after the last entry; entries of one moment are counted, so that none is lost."""
    breaks, seen = 0, 0
    while True:
        try:
            skip = seen
            with context.rest.logs.follow(
                context.project, run_name, submission_id, start_time=start_time
            ) as lines:
                for line in lines:
                    if line.get("type") == "end":
                        return
                    if "message" not in line:
                        continue
                    if skip:
                        skip -= 1
                        continue
                    write_entry(line, out)
                    breaks, seen = 0, seen + 1
            raise ServerUnreachable("The server ended the stream of the log before its end")
        except ServerUnreachable as error:
            breaks = _pause_after_break(breaks, error)


def _copy_pages(
    context: Context, run_name: str, submission_id: str, out: ByteSink, start_time: str | None
) -> None:
    is_last = False
    while True:
        start_time = _copy_new_pages(context, run_name, submission_id, out, start_time)
        if is_last:
            return
        is_last = _is_over(context, run_name, submission_id)
        if not is_last:
            time.sleep(LOG_INTERVAL)


def _copy_new_pages(
    context: Context, run_name: str, submission_id: str, out: ByteSink, start_time: str | None
) -> str | None:
    """Writes all entries after the moment; returns the moment of the last one."""
    token: str | None = None
    last_time = start_time
    while True:
        page = context.rest.logs.poll(
            context.project, run_name, submission_id, start_time=start_time, next_token=token
        )
        for entry in page["logs"]:
            write_entry(entry, out)
            last_time = entry["timestamp"]
        token = page["next_token"]
        if token is None:
            return last_time


def _is_over(context: Context, run_name: str, submission_id: str) -> bool:
    run = context.rest.runs.get(context.project, name=run_name)
    if run["status"] in FINISHED:
        return True
    submissions = [item for job in run["jobs"] for item in job["job_submissions"] if item["id"] == submission_id]
    return not submissions or submissions[-1]["finished_at"] is not None
