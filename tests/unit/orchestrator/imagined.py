"""The world in memory: what `record`, effects, agents and watchers do, so that rules can be run against chance.

Time stands still unless told. `settle` works off what is due until nothing changes, like the engine does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from uuid import UUID

from dstack.agent import protocol
from dstack.agent.protocol import TaskState
from dstack.core.backends import BackendType
from dstack.core.configurations.profiles import Retry
from dstack.core.instances import (
    Disk,
    InstanceAvailability,
    InstanceOfferWithAvailability,
    InstanceStatus,
    InstanceType,
    Requirements,
    Resources,
)
from dstack.core.jobs import JobStatus
from dstack.core.resources import ResourcesSpec
from dstack.core.runs import RunStatus, RunTerminationReason
from dstack.server.orchestrator.instances import rules as instances
from dstack.server.orchestrator.instances.rules import InstanceSnapshot
from dstack.server.orchestrator.jobs import rules as jobs
from dstack.server.orchestrator.jobs.rules import InstanceFacts, JobSnapshot
from dstack.server.orchestrator.placement import facts as placement_facts
from dstack.server.orchestrator.placement import rules as placement
from dstack.server.orchestrator.runs import facts
from dstack.server.orchestrator.runs import rules as runs
from dstack.server.orchestrator.runs.facts import RunSnapshot, SubmissionFacts

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
PROJECT, FLEET = UUID(int=1), UUID(int=2)
MACHINE = Resources(cpus=4, memory_mib=16384, gpus=[], spot=False, disk=Disk(size_mib=512_000))
OFFER = InstanceOfferWithAvailability(
    backend=BackendType.REMOTE,
    instance=InstanceType(name="small", resources=MACHINE),
    region="r",
    price=1.0,
    availability=InstanceAvailability.AVAILABLE,
)
NEEDS = Requirements(resources=ResourcesSpec())
MAX_ROUNDS = 400


@dataclass
class Imagined:
    """One project whose fleet may have `max_instances`; `stock` instances can be had of the backend."""

    max_instances: int = 2
    stock: int = 2
    now: datetime = START
    runs: dict[UUID, RunSnapshot] = field(default_factory=dict)
    jobs: dict[UUID, JobSnapshot] = field(default_factory=dict)
    places: dict[UUID, tuple[int, int, int]] = field(default_factory=dict)
    """Of jobs: replica, job and submission number."""
    retries: dict[UUID, Retry | None] = field(default_factory=dict)
    instances: dict[UUID, InstanceSnapshot] = field(default_factory=dict)
    existing: set[UUID] = field(default_factory=set)
    """Instances at the backend."""
    tasks: dict[UUID, TaskState] = field(default_factory=dict)
    """On the agents, by job."""
    starts: dict[UUID, int] = field(default_factory=dict)
    processed: dict[UUID, datetime] = field(default_factory=dict)
    next_id: int = 100

    def new_id(self) -> UUID:
        self.next_id += 1
        return UUID(int=self.next_id)

    def submit(self, nodes: int, retry: Retry | None) -> UUID:
        run_id = self.new_id()
        self.runs[run_id] = RunSnapshot(run_id, PROJECT, "r", RunStatus.SUBMITTED, self.now, ())
        self.retries[run_id] = retry
        for num in range(nodes):
            self._add_job(run_id, (0, num, 0))
        return run_id

    def _add_job(self, run_id: UUID, place: tuple[int, int, int]) -> None:
        job_id, retry = self.new_id(), self.retries[run_id]
        until = None if retry is None else self.now + timedelta(seconds=retry.duration)
        self.jobs[job_id] = JobSnapshot(
            job_id, run_id, PROJECT, "j", JobStatus.SUBMITTED, self.now, waits_for_capacity_until=until
        )
        self.places[job_id], self.processed[job_id] = place, self.now

    def stop(self, run_id: UUID, reason: RunTerminationReason) -> None:
        if not self.runs[run_id].status.is_finished():
            self.runs[run_id] = replace(self.runs[run_id], stop_requested=reason)

    # ---- what happens on hosts

    def end_task(self, job_id: UUID, reason: str) -> None:
        task = self.tasks.get(job_id)
        if task is not None and task.status != protocol.ENDED:
            self.tasks[job_id] = replace(task, status=protocol.ENDED, reason=reason)

    def watch(self) -> None:
        """What the watchers of reachable hosts write."""
        for job_id, task in self.tasks.items():
            job = self.jobs[job_id]
            instance = None if job.instance is None else self.instances[job.instance.id]
            if instance is None or job.status.is_finished() or instance.unreachable_since is not None:
                continue
            self.jobs[job_id] = replace(job, task=task, logs_stored=task.status == protocol.ENDED)
        for id, instance in self.instances.items():
            if instance.has_address and not instance.has_agent:
                self.instances[id] = replace(instance, has_agent=True)

    def reach(self, instance_id: UUID, reachable: bool) -> None:
        since = None if reachable else self.now
        self.instances[instance_id] = replace(self.instances[instance_id], unreachable_since=since)
        for job_id, job in self.jobs.items():
            if job.instance is not None and job.instance.id == instance_id and not job.status.is_finished():
                self.jobs[job_id] = replace(job, unreachable_since=since)

    # ---- passes

    def pass_run(self, run_id: UUID) -> None:
        run = replace(self.runs[run_id], jobs=self._latest(run_id))
        decision = runs.decide(run, self.now)
        if run.status.is_finished():
            assert decision.status is run.status
            assert not decision.writes
        for write in decision.writes:
            if isinstance(write, facts.TerminateJobs):
                for id in write.ids:
                    if self.jobs[id].terminate_requested is None:
                        self.jobs[id] = replace(self.jobs[id], terminate_requested=write.reason)
            if isinstance(write, facts.SubmitReplicas):
                self._resubmit(run, write.replica_nums)
            if isinstance(write, facts.CountAttempt):
                run = replace(run, resubmission_attempt=write.attempt)
        reason = decision.reason if decision.status is RunStatus.TERMINATING else None
        self.runs[run_id] = replace(
            run, status=decision.status, termination_reason=reason or run.termination_reason
        )

    def _latest(self, run_id: UUID) -> tuple[SubmissionFacts, ...]:
        latest: dict[tuple[int, int], SubmissionFacts] = {}
        mine = [id for id, job in self.jobs.items() if job.run_id == run_id]
        for id in sorted(mine, key=lambda id: self.places[id]):
            job, (replica, num, submission) = self.jobs[id], self.places[id]
            before = latest.get((replica, num))
            earlier = None if before is None else before.last_provisioned_at
            provisioned = self.processed[id] if job.put_at else earlier
            latest[replica, num] = SubmissionFacts(
                id,
                replica,
                num,
                submission,
                job.status,
                job.submitted_at,
                self.processed[id],
                job.termination_reason,
                job.terminate_requested is not None,
                self.retries[run_id],
                provisioned,
            )
        return tuple(latest.values())

    def _resubmit(self, run: RunSnapshot, replicas: tuple[int, ...]) -> None:
        for job in run.jobs:
            if job.replica_num in replicas:
                assert self.jobs[job.id].status.is_finished(), "a job must end before it is submitted again"
                self._add_job(run.id, (job.replica_num, job.job_num, job.submission_num + 1))

    def pass_job(self, job_id: UUID) -> None:
        job = self._known(self.jobs[job_id])
        decision = jobs.decide(job, self.now)
        if job.status.is_finished():
            assert decision.status is job.status
            assert not decision.effects
            return
        if decision.status is not job.status:
            self.processed[job_id] = self.now
        for write in decision.writes:
            if isinstance(write, jobs.Detach):
                job = replace(job, instance=None, capacity_error=write.capacity_error)
                self.processed[job_id] = self.now
            if isinstance(write, jobs.Release) and job.instance is not None:
                instance = self.instances[job.instance.id]
                self.instances[instance.id] = replace(instance, busy_blocks=instance.busy_blocks - 1)
        if decision.status is JobStatus.TERMINATING and job.status is not JobStatus.TERMINATING:
            job = replace(job, termination_reason=decision.reason)
        self.jobs[job_id] = job = replace(job, status=decision.status)
        for effect in decision.effects:
            self._perform(job, effect)

    def _known(self, job: JobSnapshot) -> JobSnapshot:
        if job.instance is None:
            return job
        one = self.instances[job.instance.id]
        facts = InstanceFacts(one.id, one.name, one.status, has_agent=one.has_address and one.has_agent)
        return replace(job, instance=facts)

    def _perform(self, job: JobSnapshot, effect: object) -> None:
        assert job.instance is not None
        host = self.instances[job.instance.id]
        if host.unreachable_since is not None or host.id not in self.existing:
            return
        if isinstance(effect, jobs.PutTask):
            if job.id not in self.tasks:
                self.starts[job.id] = self.starts.get(job.id, 0) + 1
                self.tasks[job.id] = TaskState(id=str(job.id), seq=1, status=protocol.RUNNING)
            self.jobs[job.id] = replace(job, put_at=self.now)
        if isinstance(effect, jobs.StopTask):
            known = self.tasks.get(job.id, TaskState(id=str(job.id), seq=1, status=protocol.PENDING))
            self.tasks[job.id] = replace(known, status=protocol.ENDED, reason=protocol.STOPPED)
            self.jobs[job.id] = replace(job, stop_sent_at=self.now)
        if isinstance(effect, jobs.RemoveTask):
            del self.tasks[job.id]
            self.jobs[job.id] = replace(job, task_removed=True)

    def pass_placement(self) -> None:
        waiting = tuple(
            placement_facts.WaitingJob(
                id,
                job.run_id,
                self.places[id][0],
                self.places[id][1],
                0,
                job.submitted_at,
                NEEDS,
                capacity_error=job.capacity_error,
                last_tried_at=self.processed[id],
            )
            for id, job in self.jobs.items()
            if job.status is JobStatus.SUBMITTED and job.instance is None and job.terminate_requested is None
        )
        free = tuple(
            placement_facts.FreeInstance(
                one.id, one.name, FLEET, "fake", one.status, OFFER if one.has_offer else None, 1, one.busy_blocks
            )
            for one in self.living()
            if one.terminate_requested is None and one.unreachable_since is None
        )
        room = self.max_instances - len(self.living())
        fleet = placement_facts.GrowingFleet(FLEET, "f", room, is_cluster=True)
        decision = placement.decide(placement_facts.PlacementSnapshot(PROJECT, waiting, free, (fleet,)), self.now)
        for write in decision.writes:
            if isinstance(write, placement_facts.Refuse):
                for id in write.job_ids:
                    self.jobs[id] = replace(self.jobs[id], capacity_error=write.error)
                    self.processed[id] = self.now
                continue
            assert self.jobs[write.job.id].instance is None, "never two instances for one job"
            if isinstance(write, placement_facts.CreateFor):
                new = InstanceSnapshot(
                    self.new_id(),
                    PROJECT,
                    "i",
                    InstanceStatus.PENDING,
                    self.now,
                    idle_duration=timedelta(minutes=5),
                )
                self.instances[new.id] = new = replace(new, busy_blocks=1)
            else:
                old = self.instances[write.instance.id]
                self.instances[old.id] = new = replace(old, busy_blocks=old.busy_blocks + write.blocks)
            assert new.busy_blocks <= 1, "no instance ever holds more than it has"
            facts = InstanceFacts(new.id, new.name, new.status, has_agent=False)
            self.jobs[write.job.id] = replace(self.jobs[write.job.id], instance=facts, capacity_error=None)

    def living(self) -> list[InstanceSnapshot]:
        gone = (InstanceStatus.TERMINATING, InstanceStatus.TERMINATED)
        return [one for one in self.instances.values() if one.status not in gone]

    def pass_instance(self, id: UUID) -> None:
        one = self.instances[id]
        decision = instances.decide(one, self.now)
        if one.status.is_finished():
            assert decision.status is one.status
            assert not decision.effects
            return
        one = replace(one, status=decision.status)
        if decision.status is InstanceStatus.TERMINATING and one.termination_deadline is None:
            one = replace(one, termination_deadline=self.now + instances.TERMINATION_LIMIT)
        for effect in decision.effects:
            if isinstance(effect, instances.ChooseOffer):
                sold_out = len(self.existing) >= self.stock
                reason = instances.R.NO_OFFERS if sold_out else None
                one = replace(one, has_offer=not sold_out, terminate_requested=reason)
            if isinstance(effect, instances.EnsureInstance):
                self.existing.add(id)
                one = replace(one, has_address=True)
            if isinstance(effect, instances.EnsureTerminated):
                self.existing.discard(id)
                self.tasks = {job: t for job, t in self.tasks.items() if not self._is_on(job, id)}
                one = replace(one, is_gone=True)
        self.instances[id] = one

    def _is_on(self, job_id: UUID, instance_id: UUID) -> bool:
        instance = self.jobs[job_id].instance
        return instance is not None and instance.id == instance_id

    def settle(self) -> None:
        """Until a round changes nothing."""
        for _ in range(MAX_ROUNDS):
            before = (dict(self.runs), dict(self.jobs), dict(self.instances))
            self.watch()
            for run_id in list(self.runs):
                self.pass_run(run_id)
            self.pass_placement()
            for job_id in list(self.jobs):
                self.pass_job(job_id)
            for instance_id in list(self.instances):
                self.pass_instance(instance_id)
            runs_now = {id: replace(run, jobs=()) for id, run in self.runs.items()}
            runs_before = {id: replace(run, jobs=()) for id, run in before[0].items()}
            if (runs_now, self.jobs, self.instances) == (runs_before, before[1], before[2]):
                return
        raise AssertionError("it never comes to rest")
