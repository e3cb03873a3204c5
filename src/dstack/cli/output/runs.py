"""Runs as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dstack.cli.output.values import (
    format_age,
    format_backend,
    format_gpus,
    format_price,
    format_resources,
    format_seconds,
)

Document = Mapping[str, Any]


def list_headers(runs: Sequence[Document], *, verbose: bool) -> list[str]:
    """The columns of `ps`; PROBES only when a run has some, or all is shown; REQUESTS, of the last minute, when
    a service has had some of late."""
    if verbose:
        before = ["NAME", "BACKEND", "RESOURCES", "INSTANCE TYPE", "PRICE", "STATUS", "PROBES"]
        requests = ["REQUESTS"] if any(run.get("service_stats") for run in runs) else []
        return [*before, *requests, "SUBMITTED", "ERROR"]
    probes = ["PROBES"] if any(_has_probes(run) for run in runs) else []
    return ["NAME", "BACKEND", "GPU", "PRICE", "STATUS", *probes, "SUBMITTED"]


def list_rows(runs: Sequence[Document], headers: Sequence[str], now: datetime) -> list[list[str]]:
    """One row a run, or a summary and one row a job where there are several."""
    cells = [row for run in runs for row in _run_cells(run, now)]
    return [[row.get(header, "") for header in headers] for row in cells]


def last_submission(job: Document) -> Document | None:
    """The newest submission of a job."""
    submissions = job["job_submissions"]
    return submissions[-1] if submissions else None


def _has_probes(run: Document) -> bool:
    return any(job["job_spec"].get("probes") for job in run["jobs"])


def _run_cells(run: Document, now: datetime) -> list[dict[str, str]]:
    summary = {
        "NAME": run["run_spec"]["run_name"] or "",
        "STATUS": run["status_message"] or run["status"],
        "SUBMITTED": format_age(run["submitted_at"], now),
        "ERROR": run.get("error") or "",
        "REQUESTS": _format_requests(run.get("service_stats")),
    }
    jobs = _shown_jobs(run)
    if len(jobs) == 1:
        cells = _job_cells(jobs[0], now)
        return [cells | summary | {"ERROR": summary["ERROR"] or cells["ERROR"]}]
    rows = [_job_cells(job, now) | {"NAME": _job_name(job, jobs)} for job in jobs]
    return [_joined(rows) | summary, *rows]


def _shown_jobs(run: Document) -> list[Document]:
    """The jobs of an active run that are not over; of a finished run, all of the last deployment."""
    jobs = [job for job in run["jobs"] if last_submission(job) is not None]
    finished = {"terminated", "aborted", "failed", "done"}
    alive = [job for job in jobs if (last_submission(job) or {})["status"] not in finished]
    return alive or jobs[-1:] if run["status"] not in finished else jobs


def _job_cells(job: Document, now: datetime) -> dict[str, str]:
    submission = last_submission(job) or {}
    provisioning = submission.get("job_provisioning_data")
    offer = (submission.get("job_runtime_data") or {}).get("offer")
    cells = {
        "STATUS": submission.get("status_message") or submission.get("status", ""),
        "PROBES": _format_probes(job, submission),
        "SUBMITTED": format_age(submission.get("submitted_at"), now),
        "ERROR": submission.get("termination_reason_message") or submission.get("error") or "",
    }
    if provisioning is None:
        return cells
    instance_type = (offer or {}).get("instance") or provisioning["instance_type"]
    return cells | {
        "BACKEND": format_backend(provisioning["backend"], provisioning["region"]),
        "GPU": format_gpus(instance_type["resources"]["gpus"]),
        "RESOURCES": format_resources(instance_type["resources"]),
        "INSTANCE TYPE": instance_type["name"],
        "PRICE": format_price((offer or provisioning)["price"]),
    }


def _joined(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    backends = dict.fromkeys(row["BACKEND"] for row in rows if row.get("BACKEND"))
    return {"BACKEND": ", ".join(backends)}


def _job_name(job: Document, jobs: Sequence[Document]) -> str:
    spec = job["job_spec"]
    words = [f"replica={spec['replica_num']}", f"job={spec['job_num']}"]
    deployments = {(last_submission(other) or {}).get("deployment_num") for other in jobs}
    if len(deployments) > 1:
        words.append(f"deployment={(last_submission(job) or {}).get('deployment_num')}")
    if len({other["job_spec"].get("replica_group") for other in jobs}) > 1:
        words.append(f"group={spec.get('replica_group')}")
    return "   " + " ".join(words)


def _format_requests(stats: Document | None) -> str:
    if not stats:
        return ""
    words = [f"{stats['requests'] / stats['window']:.3g}/s"]
    if stats["errors"]:
        words.append(f"{stats['errors']} errors")
    if stats["in_flight"]:
        words.append(f"{stats['in_flight']} in flight")
    if stats["latency"]:
        words += [f"{name} {format_seconds(stats['latency'][name])}" for name in ("p50", "p99")]
    if stats["first_byte"]:
        words.append(f"first byte {format_seconds(stats['first_byte']['p50'])}")
    if stats["completion_tokens"]:
        words.append(f"{stats['completion_tokens'] / stats['window']:.3g} tokens/s")
    return ", ".join(words)


def _format_probes(job: Document, submission: Document) -> str:
    """A mark a probe: passing, or not yet."""
    specs = job["job_spec"].get("probes") or []
    states = submission.get("probes") or []
    if submission.get("status") != "running":
        return ""
    marks = [
        "✓" if state.get("success_streak", 0) >= spec.get("ready_after", 1) else "×"
        for spec, state in zip(specs, states, strict=False)
    ]
    return "".join(marks)
