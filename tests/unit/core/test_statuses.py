"""Statuses and reasons as the lifecycle tables have them."""

from dstack.core.configurations.profiles import RetryEvent
from dstack.core.jobs import JobStatus, JobTerminationReason
from dstack.core.runs import RunStatus, RunTerminationReason


def test_every_job_reason_ends_in_a_finished_status() -> None:
    assert all(reason.job_status.is_finished() for reason in JobTerminationReason)


def test_only_failures_are_retried() -> None:
    for reason in JobTerminationReason:
        assert (reason.retry_event is not None) == (reason.job_status is JobStatus.FAILED)
    assert JobTerminationReason.INTERRUPTED_BY_NO_CAPACITY.retry_event is RetryEvent.INTERRUPTION
    assert JobTerminationReason.FAILED_TO_START_DUE_TO_NO_CAPACITY.retry_event is RetryEvent.NO_CAPACITY
    assert JobTerminationReason.EXECUTOR_ERROR.retry_event is RetryEvent.ERROR


def test_error_texts() -> None:
    assert JobTerminationReason.CREATING_CONTAINER_ERROR.error == "runner error"
    assert JobTerminationReason.CONTAINER_EXITED_WITH_ERROR.error is None
    assert JobTerminationReason.MAX_DURATION_EXCEEDED.error == "max duration exceeded"


def test_run_reasons() -> None:
    R = RunTerminationReason
    expected = {
        R.ALL_JOBS_DONE: (RunStatus.DONE, JobTerminationReason.DONE_BY_RUNNER),
        R.STOPPED_BY_USER: (RunStatus.TERMINATED, JobTerminationReason.TERMINATED_BY_USER),
        R.ABORTED_BY_USER: (RunStatus.TERMINATED, JobTerminationReason.ABORTED_BY_USER),
    }
    failed = (RunStatus.FAILED, JobTerminationReason.TERMINATED_BY_SERVER)
    assert {r: (r.run_status, r.job_reason) for r in R} == {r: expected.get(r, failed) for r in R}
