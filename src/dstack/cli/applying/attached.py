"""Staying with a run: its status, its log, its end, and Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

from dstack.cli.context import Context
from dstack.cli.following import FINISHED, copy_log, iter_changes
from dstack.cli.output.live import Status
from dstack.cli.output.prompts import confirm

WAITING = ("submitted", "pending", "provisioning", "terminating")
JOB_WAITING = ("submitted", "provisioning", "pulling")
STOP_POLL_INTERVAL = 2.0
"""Seconds."""

Document = dict[str, Any]


def follow_run(context: Context, run: Document, *, ask_on_interrupt: bool) -> int:
    """Shows what the run does until it is over; the exit status says whether it ended well.

    On Ctrl-C it asks whether to stop the run (unless told not to) and leaves it.
    """
    name = run["run_spec"]["run_name"]
    try:
        return _follow(context, name)
    except KeyboardInterrupt:
        print()
        if ask_on_interrupt and confirm(f"Stop the run {name} before leaving it?"):
            _stop(context, name)
        else:
            print(f"Left the run {name}; see it with `dstack logs -f {name}`, end it with `dstack stop {name}`.")
        return 0


def _follow(context: Context, name: str) -> int:
    shown: set[str] = set()
    while True:
        run = _wait_until_started(context, name, shown)
        submission_id = _submission_id(run)
        if submission_id is not None and submission_id not in shown:
            if run["status"] not in FINISHED:
                _print_urls(context, run)
            shown.add(submission_id)
            copy_log(context, name, submission_id, sys.stdout.buffer)
        run = _wait_until_over(context, name, shown)
        if run["status"] in FINISHED:
            return _print_end(run)


def _wait_until_started(context: Context, name: str, shown: set[str]) -> Document:
    """The run once it has a log to show that was not shown yet, or is over."""
    status = Status()
    changes = iter_changes(context, name)
    try:
        for run in changes:
            if run["status"] in FINISHED or (_is_started(run) and _submission_id(run) not in shown):
                return run
            status.show(f"{name}: {run.get('status_message') or run['status']}")
    finally:
        status.clear()
        _close(changes)
    raise AssertionError("changes have no end")


def _wait_until_over(context: Context, name: str, shown: set[str]) -> Document:
    """The run once it is over or has been submitted anew."""
    changes = iter_changes(context, name)
    try:
        for run in changes:
            if run["status"] in FINISHED or run["status"] == "pending":
                return run
            if run["status"] != "terminating" and _submission_id(run) not in shown:
                return run
    finally:
        _close(changes)
    raise AssertionError("changes have no end")


def _close(changes: Iterator[Document]) -> None:
    close = getattr(changes, "close", None)
    if close is not None:
        close()


def _is_started(run: Document) -> bool:
    if run["status"] in WAITING or not run["jobs"]:
        return False
    submissions = run["jobs"][0]["job_submissions"]
    return bool(submissions) and submissions[-1]["status"] not in JOB_WAITING


def _submission_id(run: Document) -> str | None:
    submissions = run["jobs"][0]["job_submissions"] if run["jobs"] else []
    return submissions[-1]["id"] if submissions else None


def _print_urls(context: Context, run: Document) -> None:
    service = run.get("service")
    if service is None:
        return
    print(f"Service: {urljoin(context.rest.base_url + '/', service['url'])}")
    if service.get("model"):
        base_url = urljoin(context.rest.base_url + "/", service["model"]["base_url"])
        print(f"Model {service['model']['name']}: {base_url}")
    sys.stdout.flush()


def _print_end(run: Document) -> int:
    name = run["run_spec"]["run_name"]
    if run["status"] == "done":
        print(f"{name}: done")
        return 0
    print(f"{name}: {_explain_end(run)}")
    return 1


def _explain_end(run: Document) -> str:
    """How it ended in words and, if known, why, in one line."""
    submission = run.get("latest_job_submission") or {}
    word = run.get("status_message") or run["status"]
    if word == run["status"]:
        word = submission.get("status_message") or word
    reasons = [submission.get("termination_reason_message"), submission.get("error"), run.get("error")]
    if word == run["status"]:
        reasons += [submission.get("termination_reason"), run.get("termination_reason")]
    reason = next((text for text in reasons if text and text != word), None)
    return word if reason is None else f"{word} ({' '.join(reason.split())})"


def _stop(context: Context, name: str) -> None:
    """Stops the run and waits; a second Ctrl-C aborts it."""
    context.rest.runs.stop(context.project, [name])
    status = Status()
    try:
        while (run := context.rest.runs.get(context.project, name=name))["status"] not in FINISHED:
            status.show(f"Stopping {name}… (Ctrl-C aborts it)")
            time.sleep(STOP_POLL_INTERVAL)
        status.clear()
        print(f"{name}: {run.get('status_message') or run['status']}")
    except KeyboardInterrupt:
        status.clear()
        context.rest.runs.stop(context.project, [name], abort=True)
        print(f"Aborting {name}.")
