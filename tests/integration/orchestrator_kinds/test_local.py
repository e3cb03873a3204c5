"""Runs on the machine in front of us: real processes, real logs, on both databases."""

from __future__ import annotations

from tests.integration.orchestrator_kinds.conftest import Control

from dstack.core.jobs import JobStatus


async def test_a_task_runs_its_output_is_stored_and_everything_is_given_back(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit("hello", commands=["echo hello $DSTACK_RUN_NAME"])
    run = await control.until_status(run_id, "done", "failed", "terminated")
    assert (run.status, run.termination_reason) == ("done", "all_jobs_done")
    [job] = await control.jobs(run_id)
    assert (job.status, job.exit_status, job.termination_reason) == ("done", 0, "done_by_runner")
    assert "hello hello" in await control.output("hello", job.id)
    [instance] = await control.instances()
    assert instance.busy_blocks == 0
    assert job.provisioning_data is not None
    assert job.finished_at is not None


async def test_a_command_that_fails_fails_its_run(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit("bad", commands=["exit 3"])
    run = await control.until_status(run_id, "done", "failed", "terminated")
    assert (run.status, run.termination_reason) == ("failed", "job_failed")
    [job] = await control.jobs(run_id)
    assert (job.status, job.exit_status) == (JobStatus.FAILED.value, 3)


async def test_a_stopped_run_ends_its_processes_and_keeps_its_last_output(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit("long", commands=["echo begun", "sleep 1000"])
    await control.until_status(run_id, "running")
    await control.request_stop(run_id)
    run = await control.until_status(run_id, "done", "failed", "terminated")
    assert (run.status, run.termination_reason) == ("terminated", "stopped_by_user")
    [job] = await control.jobs(run_id)
    assert (job.status, job.termination_reason) == ("terminated", "terminated_by_user")
    assert "begun" in await control.output("long", job.id)
    assert [instance.busy_blocks for instance in await control.instances()] == [0]


async def test_nodes_of_a_task_start_together_and_know_each_other(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit("nodes", nodes=2, commands=["echo rank $DSTACK_NODE_RANK of $DSTACK_NODES_NUM"])
    run = await control.until_status(run_id, "done", "failed", "terminated")
    assert run.status == "done"
    jobs = await control.jobs(run_id)
    said = [await control.output("nodes", job.id) for job in jobs]
    assert ["rank 0 of 2" in said[0], "rank 1 of 2" in said[1]] == [True, True]


async def test_an_image_without_docker_is_a_clear_error_of_the_job(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit("image", image="no-such-registry.invalid/image", commands=["true"])
    run = await control.until_status(run_id, "done", "failed", "terminated")
    [job] = await control.jobs(run_id)
    assert run.status == "failed"
    assert job.termination_reason_message


async def test_what_the_machine_does_not_have_is_said(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit("huge", commands=["true"], resources={"cpu": "4096"})
    await control.until_status(run_id, "failed")
    [job] = await control.jobs(run_id)
    assert job.termination_reason == "failed_to_start_due_to_no_capacity"
    assert "4096" in (job.termination_reason_message or "")


async def test_without_a_fleet_the_job_says_so(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit("nowhere", commands=["true"], fleets=["other"])
    await control.until_status(run_id, "failed")
    [job] = await control.jobs(run_id)
    assert (job.termination_reason_message or "").startswith("No fleets")


async def test_tasks_outlive_a_restart_of_the_server(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit(
        "lives", commands=["echo one", f"while [ ! -e {control.folder}/go ]; do sleep 0.1; done", "echo two"]
    )
    await control.until_status(run_id, "running")
    await control.stop()
    (control.folder / "go").touch()
    await control.start()
    run = await control.until_status(run_id, "done", "failed", "terminated")
    assert run.status == "done"
    [job] = await control.jobs(run_id)
    assert (await control.output("lives", job.id)).split() == ["one", "two"]
