"""The queue of a project: who gets what, and why others get nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from dstack.core.backends import BackendType
from dstack.core.configurations.fleet import FleetConfiguration
from dstack.core.configurations.profiles import Profile, ProfileParams
from dstack.core.configurations.references import EntityReference
from dstack.core.fleets import FleetSpec
from dstack.core.instances import (
    Disk,
    Gpu,
    InstanceAvailability,
    InstanceOfferWithAvailability,
    InstanceStatus,
    InstanceType,
    Requirements,
    Resources,
)
from dstack.core.resources import ResourcesSpec
from dstack.server.orchestrator.decision import rank
from dstack.server.orchestrator.placement import rules
from dstack.server.orchestrator.placement.facts import (
    Assign,
    CreateFor,
    FreeInstance,
    GrowingFleet,
    Limits,
    PlacementSnapshot,
    Refuse,
    WaitingJob,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
FLEET = GrowingFleet(UUID(int=50), "f", room=0)
ON_DEMAND = Requirements(resources=ResourcesSpec(), spot=False)


def offer(cpus: int = 4, price: float = 1.0) -> InstanceOfferWithAvailability:
    resources = Resources(cpus=cpus, memory_mib=65536, gpus=[], spot=False, disk=Disk(size_mib=512_000))
    return InstanceOfferWithAvailability(
        backend=BackendType.REMOTE,
        instance=InstanceType(name="m", resources=resources),
        region="r",
        price=price,
        availability=InstanceAvailability.AVAILABLE,
    )


def job(num: int, *, age: int = 0, cpus: str | None = None, **more: Any) -> WaitingJob:
    spec = ResourcesSpec.model_validate({"cpu": cpus} if cpus else {})
    given = {"run_id": UUID(int=num + 1000), "replica_num": 0, "job_num": 0, "priority": 0, **more}
    submitted = NOW - timedelta(seconds=age)
    return WaitingJob(id=UUID(int=num), submitted_at=submitted, requirements=Requirements(resources=spec), **given)


def instance(num: int, *, total: int = 1, backend: str = "fake", **more: Any) -> FreeInstance:
    given = {"status": InstanceStatus.IDLE, "offer": offer(), **more}
    return FreeInstance(UUID(int=num), f"f-{num}", FLEET.id, backend, total_blocks=total, busy_blocks=0, **given)


def place(
    *jobs: WaitingJob, on: tuple[FreeInstance, ...] = (), fleets: tuple[GrowingFleet, ...] = (FLEET,)
) -> Any:
    return rules.decide(PlacementSnapshot(UUID(int=1), jobs, on, fleets), NOW)


def assigned(decision: Any) -> dict[int, int]:
    return {w.job.id.int: w.instance.id.int for w in decision.writes if isinstance(w, Assign)}


def test_b11_the_queue_is_by_priority_and_then_by_age() -> None:
    jobs = (job(1, age=1), job(2, age=9), job(3, priority=5))
    assert assigned(place(*jobs, on=(instance(90), instance(91)))) == {3: 90, 2: 91}


def test_the_cheapest_that_does_is_taken() -> None:
    dear, cheap = instance(90, offer=offer(price=5)), instance(91, offer=offer(price=1))
    assert assigned(place(job(1), on=(dear, cheap))) == {1: 91}


def test_blocks_are_shared_and_never_more_than_there_are() -> None:
    shared = instance(90, total=2, offer=offer(cpus=4))
    decision = place(job(1), job(2), job(3), on=(shared,))
    assert assigned(decision) == {1: 90, 2: 90}
    assert [write.job_ids for write in decision.writes if isinstance(write, Refuse)] == [(UUID(int=3),)]


def test_nodes_of_a_replica_are_placed_together_or_not_at_all() -> None:
    nodes = tuple(job(num, run_id=UUID(int=7), job_num=num) for num in (0, 1))
    assert assigned(place(*nodes, on=(instance(90),))) == {}
    assert assigned(place(*nodes, job(5), on=(instance(90),))) == {5: 90}
    assert assigned(place(*nodes, on=(instance(90), instance(91)))) == {0: 90, 1: 91}


def test_each_of_several_nodes_has_a_whole_instance_that_nobody_else_uses() -> None:
    asked = Requirements(resources=ResourcesSpec(), multinode=True)
    nodes = [replace(job(num, run_id=UUID(int=7), job_num=num), requirements=asked) for num in (0, 1)]
    used = replace(instance(90, total=2), busy_blocks=1)
    assert assigned(place(*nodes, on=(used, instance(91, total=2)))) == {}
    decision = place(*nodes, job(5), on=(used, instance(91, total=2), instance(92, total=4)))
    assert assigned(decision) == {0: 91, 1: 92, 5: 90}
    assert [write.blocks for write in decision.writes if isinstance(write, Assign)] == [2, 4, 1]


def test_b22_this_machine_is_shared_and_compared_as_a_whole() -> None:
    machine = instance(90, total=16, backend="local", offer=offer(cpus=1))
    assert assigned(place(job(1), job(2), on=(machine,))) == {1: 90, 2: 90}
    refused = place(job(3, cpus="2"), on=(machine,)).writes[0]
    assert "has 1 CPUs, needed are 2" in refused.error


def test_a_fleet_grows_when_nothing_is_free() -> None:
    growing = replace(FLEET, room=1)
    decision = place(job(1), job(2), fleets=(growing,))
    assert [type(write) for write in decision.writes] == [CreateFor, Refuse]


def test_a_run_that_only_reuses_creates_nothing() -> None:
    decision = place(job(1, limits=Limits(may_create=False)), fleets=(replace(FLEET, room=1),))
    assert isinstance(decision.writes[0], Refuse)


def test_no_fleet_is_told_by_its_fixed_words() -> None:
    for decision in (
        place(job(1), fleets=()),
        place(job(1, limits=Limits(fleets=(EntityReference(name="other"),)))),
    ):
        assert decision.writes[0].error.startswith(rules.NO_FLEETS)
    assert place(job(1)).writes[0].error.startswith("No capacity")


def test_a_job_waits_for_an_instance_that_is_coming() -> None:
    coming = instance(90, offer=None, total=0, status=InstanceStatus.PENDING)
    assert place(job(1), on=(coming,)).writes == ()


def test_b11_after_a_refusal_of_the_backend_a_while_passes_but_free_room_is_taken_at_once() -> None:
    tried = job(1, capacity_error="sold out", last_tried_at=NOW)
    growing = replace(FLEET, room=1)
    decision = place(tried, fleets=(growing,))
    assert (decision.writes, decision.look_again_at) == ((), NOW + rules.CREATION_RETRY)
    assert assigned(place(tried, on=(instance(90),), fleets=(growing,))) == {1: 90}


def test_a_full_pass_is_followed_by_another_one() -> None:
    jobs = tuple(job(num) for num in range(rules.MAX_ASSIGNMENTS + 5))
    decision = place(*jobs, on=(instance(900, total=1000, backend="local"),))
    assert (len(decision.writes), decision.again) == (rules.MAX_ASSIGNMENTS, True)


def _asking(**settings: Any) -> GrowingFleet:
    configuration = FleetConfiguration.model_validate({"name": "f", "nodes": "0..2", **settings})
    return replace(FLEET, room=2, spec=FleetSpec(configuration=configuration, profile=Profile()))


def test_a_new_instance_is_what_fleet_and_run_ask_for_together() -> None:
    asking = _asking(max_price=1.5, regions=["eu", "us"], spot_policy="spot")
    decision = place(replace(job(1, profile={"regions": ["EU"]}), requirements=ON_DEMAND), fleets=(asking,))
    (create,) = decision.writes
    assert isinstance(create, CreateFor)
    assert (create.terms.requirements.max_price, create.terms.requirements.spot) == (1.5, True)
    assert create.terms.limits.regions == frozenset({"eu"})


def test_a_fleet_that_does_not_fit_the_run_is_told() -> None:
    decision = place(job(1, profile={"regions": ["asia"]}), fleets=(_asking(regions=["eu"]),))
    (refused,) = decision.writes
    assert isinstance(refused, Refuse)
    assert "fleet f does not fit (regions: the fleet has eu, the run has asia)" in refused.error


def test_what_says_nothing_about_spot_takes_the_spot_instances_of_its_fleet() -> None:
    resources = offer().instance.resources.model_copy(update={"spot": True})
    spot = offer().model_copy(update={"instance": offer().instance.model_copy(update={"resources": resources})})
    fleets = (replace(_asking(spot_policy="spot"), room=0),)
    there = (instance(7, offer=spot),)
    waiting = replace(job(1), requirements=ON_DEMAND)
    assert assigned(place(waiting, on=there, fleets=fleets)) == {1: 7}
    strict = replace(waiting, profile={"spot_policy": "on-demand"})
    assert assigned(place(strict, on=there, fleets=fleets)) == {}


def limited(**settings: Any) -> Limits:
    asked = ProfileParams.model_validate(settings)
    return Limits(
        fleets=None if asked.fleets is None else tuple(asked.fleets),
        instances=None if asked.instances is None else tuple(asked.instances),
        availability_zones=None if asked.availability_zones is None else tuple(asked.availability_zones),
    )


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({}, 90),
        ({"fleets": ["f"]}, 90),
        ({"fleets": ["main/f"]}, 90),
        ({"fleets": ["other/f"]}, None),
        ({"instances": ["f-91"]}, 91),
        ({"instances": [{"hostname": "host-91"}]}, 91),
        ({"instances": [{"hostname": "f-91"}]}, None),
        ({"instances": [{"fleet": "f", "instance": 91}]}, 91),
        ({"instances": [{"fleet": "main/f", "instance": 91}]}, 91),
        ({"instances": [{"fleet": "g", "instance": 91}]}, None),
        ({"instances": ["f-17", "f-91"]}, 91),
    ],
)
def test_a_run_may_name_its_fleets_and_instances(settings: dict[str, Any], taken: int | None) -> None:
    there = tuple(replace(instance(num), num=num, hostname=f"host-{num}") for num in (90, 91))
    fleets = (replace(FLEET, project_name="main", room=0),)
    decision = place(job(1, limits=limited(**settings)), on=there, fleets=fleets)
    assert assigned(decision) == ({} if taken is None else {1: taken})


def test_a_run_that_names_instances_creates_none() -> None:
    decision = place(job(1, limits=limited(instances=["f-0"])), fleets=(replace(FLEET, room=1),))
    assert [type(write) for write in decision.writes] == [Refuse]


def test_an_instance_in_another_zone_is_not_taken() -> None:
    there = (instance(90, offer=offer().model_copy(update={"availability_zones": ["a-1"]})),)
    assert assigned(place(job(1, limits=limited(availability_zones=["A-1"])), on=there)) == {1: 90}
    assert assigned(place(job(1, limits=limited(availability_zones=["a-2"])), on=there)) == {}


def test_a_gpu_of_this_machine_goes_to_one_job() -> None:
    gpus = [Gpu(name="L4", memory_mib=24576)] * 2
    resources = offer().instance.resources.model_copy(update={"gpus": gpus})
    kind = offer().instance.model_copy(update={"resources": resources})
    machine = instance(90, total=16, backend="local", offer=offer().model_copy(update={"instance": kind}))
    needs = Requirements(resources=ResourcesSpec.model_validate({"gpu": 1}))
    jobs = tuple(replace(job(num), requirements=needs) for num in (1, 2, 3))
    decision = place(*jobs, job(4), on=(machine,))
    assert assigned(decision) == {1: 90, 2: 90, 4: 90}
    assert [write.gpus for write in decision.writes if isinstance(write, Assign)] == [1, 1, 0]
    assert assigned(place(jobs[0], on=(replace(machine, busy_gpus=2),))) == {}
    again = replace(machine, id=UUID(int=91), fleet_id=UUID(int=51))  # the same machine in another fleet
    two = place(*jobs, on=(machine, again), fleets=(FLEET, replace(FLEET, id=UUID(int=51), name="g")))
    assert set(assigned(two)) == {1, 2}


def test_the_tightest_of_the_cheapest_is_taken_each_time() -> None:
    dear = instance(1, offer=offer(price=2.0))
    wide, narrow = instance(2, total=4), instance(3, total=2)
    decision = place(*(job(num, cpus="1..", age=-num) for num in range(10, 18)), on=(dear, wide, narrow))
    taken = [write.instance.id.int for write in decision.writes if isinstance(write, Assign)]
    assert taken == [3, 3, 2, 2, 2, 2, 1]


def test_a_refusal_names_the_first_few_of_many_instances() -> None:
    many = tuple(instance(num) for num in range(100, 1100))
    [refusal] = place(job(1, cpus="64"), on=many).writes
    assert isinstance(refusal, Refuse)
    assert refusal.error.count(";") == rules.MAX_REASONS
    assert refusal.error.endswith("; and 992 more")


def test_what_runs_goes_before_what_is_to_start_but_not_before_what_is_more_important() -> None:
    assert rank(5, has_begun=False) < rank(5, has_begun=True) < rank(6, has_begun=False)
