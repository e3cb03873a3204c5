"""Staying with a run: its status, the way into its job, its log, its end, and Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any
from urllib.parse import urljoin

from dstack.api.attach import Attachment, job_status
from dstack.api.errors import AttachError
from dstack.api.ssh.hosts import has_way_in
from dstack.api.ssh.ports import ReservedPorts, UrlRewriter, wishes_of
from dstack.cli.context import Context
from dstack.cli.following import FINISHED, ByteSink, copy_log, iter_changes
from dstack.cli.output.attachment import print_ways_in
from dstack.cli.output.live import Status
from dstack.cli.output.prompts import confirm
from dstack.cli.output.values import format_pulling, format_trigger

WAITING = ("submitted", "pending", "provisioning", "terminating")
JOB_WAITING = ("submitted", "provisioning", "pulling")
STOP_POLL_INTERVAL = 2.0
"""Seconds."""

Document = dict[str, Any]


class Follower:
    """Stays with one job of a run, through its resubmissions, until the run is over."""

    def __init__(
        self,
        context: Context,
        run_name: str,
        ports: ReservedPorts,
        *,
        replica: int = 0,
        job_number: int = 0,
        ssh_identity: str | None = None,
        shows_log: bool = True,
        since: str | None = None,
    ) -> None:
        """`ports`: local ports that are taken already; those that the job has besides are added."""
        self._context = context
        self._name = run_name
        self._ports = ports
        self._place = (replica, job_number)
        self._ssh_identity = ssh_identity
        self._shows_log = shows_log
        self._since = since
        self._shown: set[str] = set()
        """Submissions that were attached to and whose log was shown."""

    def follow(self, *, ask_on_interrupt: bool) -> int:
        """Shows what the run does until it is over; the exit status says whether it ended well.

        On Ctrl-C it asks whether to stop the run (unless told not to) and leaves it.
        """
        try:
            with _ended_by_signals(), contextlib.closing(_Releasing(self._ports)):
                return self._follow()
        except KeyboardInterrupt:
            print()
            if ask_on_interrupt and confirm(f"Stop the run {self._name} before leaving it?"):
                _stop(self._context, self._name)
            else:
                print(
                    f"Left the run {self._name}; see it with `dstack logs -f {self._name}`,"
                    f" end it with `dstack stop {self._name}`."
                )
            return 0

    def _follow(self) -> int:
        while True:
            run = self._wait_until_started()
            submission = self._submission(run)
            if submission is not None and submission["id"] not in self._shown:
                self._shown.add(submission["id"])
                self._stay_with_job(run, submission["id"])
            run = self._wait_until_over()
            if run["status"] in FINISHED:
                return _print_end(run)

    def _stay_with_job(self, run: Document, submission_id: str) -> None:
        with contextlib.ExitStack() as stack:
            if run["status"] not in FINISHED:
                _print_urls(self._context, run)
                self._attach(run, stack)
            if self._shows_log:
                out = _Rewriting(sys.stdout.buffer, UrlRewriter(self._ports.mapping, self._ports.host))
                since, self._since = self._since, None
                copy_log(self._context, self._name, submission_id, out, start_time=since)
            else:
                self._wait_until_over()

    def _attach(self, run: Document, stack: contextlib.ExitStack) -> None:
        """Attaches until the stack is closed. Only what cannot do without (ports, an IDE) waits for it or fails.

        A job that ends meanwhile is no failure.
        """
        job = self._job(run)
        if job is None or job_status(job) != "running":
            return
        wishes = wishes_of(job["job_spec"])
        is_needed = bool(wishes) or run["run_spec"]["configuration"]["type"] == "dev-environment"
        if not is_needed and self._shows_log and not has_way_in(job):
            return
        notices = _Notices(is_shown=not is_needed)
        try:
            self._ports.release()
            attachment = stack.enter_context(self._open(run, job, notices))
            if is_needed or not self._shows_log:
                attachment.wait_ready()
        except AttachError as error:
            if not is_needed and self._shows_log:
                notices(str(error))
            elif self._is_running():
                raise
            return
        notices.is_shown = True
        if is_needed or not self._shows_log:
            print_ways_in(job, attachment, self._ports.host)

    def _open(self, run: Document, job: Document, notices: _Notices) -> Attachment:
        return Attachment(
            self._context.rest, run, job, ports=self._ports, ssh_identity=self._ssh_identity, notify=notices
        )

    def _is_running(self) -> bool:
        run = self._context.rest.runs.get(self._context.project, name=self._name)
        job = self._job(run)
        return job is not None and run["status"] not in FINISHED and job_status(job) == "running"

    def _job(self, run: Document) -> Document | None:
        for job in run["jobs"]:
            if (job["job_spec"]["replica_num"], job["job_spec"]["job_num"]) == self._place:
                found: Document = job
                return found
        return None

    def _submission(self, run: Document) -> Document | None:
        job = self._job(run)
        return job["job_submissions"][-1] if job and job["job_submissions"] else None

    def _is_started(self, run: Document) -> bool:
        submission = self._submission(run)
        return run["status"] not in WAITING and submission is not None and submission["status"] not in JOB_WAITING

    def _is_shown(self, run: Document) -> bool:
        submission = self._submission(run)
        return submission is not None and submission["id"] in self._shown

    def _wait_until_started(self) -> Document:
        """The run once it has a job to attach to that was not attached to yet, or is over."""
        status = Status()
        try:
            with contextlib.closing(iter_changes(self._context, self._name)) as changes:
                for run in changes:
                    if run["status"] in FINISHED or (self._is_started(run) and not self._is_shown(run)):
                        return run
                    submission = self._submission(run) or {}
                    more = format_pulling(submission.get("image_pull_progress")) or format_trigger(run)
                    status.show(f"{self._name}: {run.get('status_message') or run['status']}", more)
        finally:
            status.clear()
        raise AssertionError("changes have no end")

    def _wait_until_over(self) -> Document:
        """The run once it is over or has been submitted anew."""
        with contextlib.closing(iter_changes(self._context, self._name)) as changes:
            for run in changes:
                if run["status"] in (*FINISHED, "pending"):
                    return run
                if run["status"] != "terminating" and not self._is_shown(run):
                    return run
        raise AssertionError("changes have no end")


class _Notices:
    """Says on the error output what becomes of the connection."""

    def __init__(self, *, is_shown: bool) -> None:
        self.is_shown = is_shown

    def __call__(self, text: str) -> None:
        if self.is_shown:
            print(text, file=sys.stderr, flush=True)


class _Releasing:
    """Frees reserved ports when it is closed."""

    def __init__(self, ports: ReservedPorts) -> None:
        self._ports = ports

    def close(self) -> None:
        self._ports.release()


class _Rewriting:
    """Shows URLs of the job's ports with the local ports."""

    def __init__(self, out: ByteSink, rewriter: UrlRewriter) -> None:
        self._out = out
        self._rewriter = rewriter

    def write(self, data: bytes) -> None:
        self._out.write(self._rewriter.rewrite(data))

    def flush(self) -> None:
        self._out.flush()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A signal to end, or a terminal that is closed, ends the command in good order too."""
    before: list[tuple[signal.Signals, Any]] = []

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for name in (signal.SIGTERM, signal.SIGHUP):
        before.append((name, signal.signal(name, end)))
    try:
        yield
    finally:
        for name, handler in before:
            signal.signal(name, handler)


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
