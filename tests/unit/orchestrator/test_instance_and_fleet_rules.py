"""What happens next to instances and fleets, as tables (reference: lifecycle, sections 11 and 12)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from dstack.core.fleets import FleetStatus
from dstack.core.instances import InstanceStatus as S
from dstack.core.instances import InstanceTerminationReason as R
from dstack.server.orchestrator.fleets import rules as fleets
from dstack.server.orchestrator.fleets.rules import CreateInstances, FleetSnapshot, MemberFacts, TerminateInstances
from dstack.server.orchestrator.instances import rules
from dstack.server.orchestrator.instances.rules import (
    ChooseOffer,
    DeployAgent,
    EnsureInstance,
    EnsureTerminated,
    InstanceSnapshot,
    RemoveAgent,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
AGO = timedelta(hours=1)
NEW = InstanceSnapshot(UUID(int=1), UUID(int=2), "f-0", S.PENDING, NOW - AGO)
UP: dict[str, Any] = {"status": S.IDLE, "has_offer": True, "has_address": True, "has_agent": True}
IDLE = {**UP, "idle_duration": timedelta(minutes=5)}
SOON = NOW + timedelta(seconds=1)
FAILED = {"is_ssh": True, "has_failed": True, "last_error": "no way there"}
LOST = {**UP, "unreachable_since": NOW - AGO}

TABLE: list[tuple[str, dict[str, Any], S, tuple[type, ...], R | None]] = [
    ("new", {}, S.PENDING, (ChooseOffer,), None),
    ("offer on record", {"has_offer": True}, S.PROVISIONING, (EnsureInstance,), None),
    ("nothing to be had", {"terminate_requested": R.NO_OFFERS}, S.TERMINATING, (), R.NO_OFFERS),
    ("agent to come", {**UP, "status": S.PROVISIONING, "has_agent": False}, S.PROVISIONING, (), None),
    (
        "agent never came",
        {**UP, "status": S.PROVISIONING, "has_agent": False, "provisioning_deadline": NOW},
        S.TERMINATING,
        (),
        R.PROVISIONING_TIMEOUT,
    ),
    ("agent answers", {**UP, "status": S.PROVISIONING}, S.IDLE, (), None),
    ("agent answers a job", {**UP, "status": S.PROVISIONING, "busy_blocks": 1}, S.BUSY, (), None),
    ("job assigned", {**UP, "busy_blocks": 1}, S.BUSY, (), None),
    ("last job gone", {**UP, "status": S.BUSY}, S.IDLE, (), None),
    ("idle too long", IDLE, S.TERMINATING, (), R.IDLE_TIMEOUT),
    ("idle, but the fleet's minimum", {**IDLE, "may_shrink": False}, S.IDLE, (), None),
    ("idle since its last job", {**IDLE, "last_job_processed_at": NOW}, S.IDLE, (), None),
    ("idle for ever", UP, S.IDLE, (), None),
    ("this machine", {**IDLE, "is_local": True}, S.IDLE, (), None),
    ("out of sight too long", LOST, S.TERMINATING, (), R.UNREACHABLE),
    ("out of sight", {**LOST, "unreachable_since": NOW}, S.IDLE, (), None),
    ("this machine's agent is gone", {**LOST, "is_local": True}, S.IDLE, (EnsureInstance,), None),
    ("to be ended", {**UP, "status": S.TERMINATING}, S.TERMINATING, (EnsureTerminated,), None),
    ("ended", {**UP, "status": S.TERMINATING, "is_gone": True}, S.TERMINATED, (), None),
    ("never was", {"status": S.TERMINATING}, S.TERMINATED, (), None),
    (
        "cannot be ended",
        {**UP, "status": S.TERMINATING, "termination_deadline": NOW - AGO},
        S.TERMINATED,
        (),
        None,
    ),
    ("a new host", {"is_ssh": True}, S.PENDING, (DeployAgent,), None),
    ("a new host, woken early", {"is_ssh": True, "wake_at": NOW + AGO}, S.PENDING, (DeployAgent,), None),
    ("a host that failed, woken early", {**FAILED, "wake_at": SOON}, S.PENDING, (), None),
    ("a host that failed is due", {**FAILED, "wake_at": NOW}, S.PENDING, (DeployAgent,), None),
    (
        "a host that failed until the end",
        {**FAILED, "wake_at": SOON, "provisioning_deadline": NOW},
        S.TERMINATING,
        (),
        R.PROVISIONING_TIMEOUT,
    ),
    ("a host out of sight, woken early", {**LOST, "is_ssh": True, "wake_at": SOON}, S.IDLE, (), None),
    ("a host out of sight is due", {**LOST, "is_ssh": True, "wake_at": NOW}, S.IDLE, (DeployAgent,), None),
    (
        "a host's agent is outdated, woken early",
        {**IDLE, "is_ssh": True, "is_outdated": True, "wake_at": SOON},
        S.IDLE,
        (),
        None,
    ),
    ("a host has its agent", {**UP, "is_ssh": True, "status": S.PENDING}, S.IDLE, (), None),
    (
        "a host never answered",
        {"is_ssh": True, "provisioning_deadline": NOW},
        S.TERMINATING,
        (),
        R.PROVISIONING_TIMEOUT,
    ),
    ("a host out of sight too long", {**LOST, "is_ssh": True}, S.IDLE, (DeployAgent,), None),
    ("a host's agent is outdated", {**IDLE, "is_ssh": True, "is_outdated": True}, S.IDLE, (DeployAgent,), None),
    ("an idle host", {**IDLE, "is_ssh": True}, S.IDLE, (), None),
    (
        "a host to be let go of",
        {**UP, "is_ssh": True, "status": S.TERMINATING},
        S.TERMINATING,
        (RemoveAgent,),
        None,
    ),
    (
        "a host still used",
        {**UP, "is_ssh": True, "status": S.TERMINATING, "job_ids": (UUID(int=9),)},
        S.TERMINATING,
        (),
        None,
    ),
    ("terminal", {**UP, "status": S.TERMINATED}, S.TERMINATED, (), None),
]


@pytest.mark.parametrize(
    ("known", "status", "effects", "reason"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_what_happens_next_to_an_instance(
    known: dict[str, Any], status: S, effects: tuple[type, ...], reason: R | None
) -> None:
    decision = rules.decide(replace(NEW, **known), NOW)
    assert (decision.status, decision.reason) == (status, reason)
    assert tuple(type(effect) for effect in decision.effects) == effects


def test_who_waits_for_the_next_attempt_is_looked_at_then() -> None:
    for known in ({**FAILED}, {**LOST, "is_ssh": True}):
        assert rules.decide(replace(NEW, **known, wake_at=SOON), NOW).look_again_at == SOON


@pytest.mark.parametrize("known", [{**LOST, "is_ssh": True}, {**IDLE, "is_ssh": True, "is_outdated": True}])
def test_the_rest_after_a_visit_begins_when_it_has_ended(known: dict[str, Any]) -> None:
    """A server that stopped in the middle of a visit makes it again at once, not when the rest would be over."""
    decision = rules.decide(replace(NEW, **known), NOW)
    assert (decision.look_again_at, decision.rest_until) == (None, NOW + rules.REDEPLOY)


def test_the_time_for_a_new_host_is_no_rest_for_a_visit_that_was_cut_off() -> None:
    known: dict[str, Any] = {**FAILED, "wake_at": NOW, "provisioning_deadline": SOON}
    decision = rules.decide(replace(NEW, **known), NOW)
    assert (decision.look_again_at, decision.rest_until) == (None, SOON)


MEMBER = MemberFacts(UUID(int=10), 0, S.IDLE)
SECOND = MemberFacts(UUID(int=11), 1, S.IDLE)
UNFIT = MemberFacts(UUID(int=12), 2, S.IDLE, mismatch="is too small")
FLEET = FleetSnapshot(UUID(int=1), UUID(int=2), "f", FleetStatus.ACTIVE, ())


@pytest.mark.parametrize(
    ("known", "status", "writes"),
    [
        ({}, FleetStatus.ACTIVE, ()),
        ({"target_nodes": 2}, FleetStatus.ACTIVE, (CreateInstances((0, 1)),)),
        ({"target_nodes": 2, "instances": (MEMBER,)}, FleetStatus.ACTIVE, (CreateInstances((1,)),)),
        ({"target_nodes": 2, "is_filled": True}, FleetStatus.ACTIVE, ()),
        ({"min_nodes": 1, "is_filled": True}, FleetStatus.ACTIVE, (CreateInstances((0,), is_retry=True),)),
        (
            {"min_nodes": 1, "is_filled": True, "consolidation_attempt": 1, "last_consolidated_at": NOW},
            FleetStatus.ACTIVE,
            (),
        ),
        (
            {"delete_requested": True, "instances": (MEMBER,)},
            FleetStatus.TERMINATING,
            (TerminateInstances((MEMBER.id,), R.TERMINATED_BY_USER),),
        ),
        ({"instances": (UNFIT,)}, FleetStatus.ACTIVE, (TerminateInstances((UNFIT.id,), R.FLEET_SPEC_MISMATCH),)),
        ({"instances": (replace(UNFIT, is_free=False),)}, FleetStatus.ACTIVE, ()),
        ({"instances": (replace(UNFIT, terminate_requested=True),)}, FleetStatus.ACTIVE, ()),
        ({"max_nodes": 1, "instances": (MEMBER,)}, FleetStatus.ACTIVE, ()),
        (
            {"max_nodes": 1, "instances": (MEMBER, SECOND)},
            FleetStatus.ACTIVE,
            (TerminateInstances((SECOND.id,), R.MAX_INSTANCES_LIMIT),),
        ),
        (
            {"max_nodes": 1, "instances": (MEMBER, replace(SECOND, is_free=False, status=S.BUSY))},
            FleetStatus.ACTIVE,
            (TerminateInstances((MEMBER.id,), R.MAX_INSTANCES_LIMIT),),
        ),
        (
            {"max_nodes": 1, "instances": (MEMBER, UNFIT)},
            FleetStatus.ACTIVE,
            (TerminateInstances((UNFIT.id,), R.FLEET_SPEC_MISMATCH),),
        ),
        ({"status": FleetStatus.TERMINATING}, FleetStatus.TERMINATED, ()),
        ({"status": FleetStatus.TERMINATED, "min_nodes": 3}, FleetStatus.TERMINATED, ()),
    ],
)
def test_what_happens_next_to_a_fleet(
    known: dict[str, Any], status: FleetStatus, writes: tuple[object, ...]
) -> None:
    decision = fleets.decide(replace(FLEET, **known), NOW)
    assert (decision.status, decision.writes) == (status, writes)
