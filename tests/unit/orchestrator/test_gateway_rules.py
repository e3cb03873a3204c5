"""What happens next to a gateway and to its machines."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.core.gateways import GatewayReplicaStatus, GatewayStatus
from dstack.server.orchestrator.gateway_replicas import rules as replicas
from dstack.server.orchestrator.gateway_replicas.rules import (
    MAX_REMOVALS,
    REACHED_WITHIN,
    Install,
    ReplicaSnapshot,
    Uninstall,
)
from dstack.server.orchestrator.gateways import rules as gateways
from dstack.server.orchestrator.gateways.rules import GatewaySnapshot, MarkDeleted, ReplicaFacts

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
G, R = GatewayStatus, GatewayReplicaStatus
GATEWAY = GatewaySnapshot(UUID(int=1), UUID(int=2), "front", G.SUBMITTED)
MACHINE = ReplicaSnapshot(UUID(int=3), UUID(int=1), "front", UUID(int=2), 0, R.PROVISIONING, NOW)
INSTALLED = replace(MACHINE, is_installed=True)
LEAVING = replace(INSTALLED, status=R.TERMINATING)


def with_machines(status: GatewayStatus, *machines: GatewayReplicaStatus, **more: Any) -> GatewaySnapshot:
    facts = tuple(ReplicaFacts(UUID(int=10 + num), one, "no disk") for num, one in enumerate(machines))
    return replace(GATEWAY, status=status, replicas=facts, **more)


@pytest.mark.parametrize(
    ("gateway", "status", "message", "writes"),
    [
        (with_machines(G.SUBMITTED, R.SUBMITTED), G.PROVISIONING, None, ()),
        (with_machines(G.PROVISIONING, R.RUNNING, R.PROVISIONING), G.PROVISIONING, None, ()),
        (with_machines(G.PROVISIONING, R.RUNNING, R.RUNNING), G.RUNNING, None, ()),
        (with_machines(G.PROVISIONING, R.RUNNING, R.TERMINATED), G.FAILED, "no disk", ()),
        (with_machines(G.RUNNING, R.RUNNING), G.RUNNING, None, ()),
        (with_machines(G.FAILED, R.TERMINATED), G.FAILED, None, ()),
        (with_machines(G.RUNNING, R.RUNNING, delete_requested=True), G.RUNNING, None, ()),
        (with_machines(G.RUNNING, R.TERMINATED, delete_requested=True), G.RUNNING, None, (MarkDeleted(),)),
        (with_machines(G.RUNNING, R.TERMINATED, delete_requested=True, deleted=True), G.RUNNING, None, ()),
    ],
)
def test_a_gateway(gateway: GatewaySnapshot, status: GatewayStatus, message: str | None, writes: Any) -> None:
    decision = gateways.decide(gateway, NOW)
    assert (decision.status, decision.message, decision.writes) == (status, message, writes)


def test_its_machines_are_woken_when_it_is_to_go() -> None:
    decision = gateways.decide(with_machines(G.RUNNING, R.RUNNING, R.TERMINATED, delete_requested=True), NOW)
    assert [key.id for key in decision.wake] == [UUID(int=10)]


@pytest.mark.parametrize(
    ("machine", "status", "message", "effects"),
    [
        (replace(MACHINE, status=R.SUBMITTED), R.PROVISIONING, None, ()),
        (replace(MACHINE, status=R.SUBMITTED, delete_requested=True), R.TERMINATED, None, ()),
        (MACHINE, R.PROVISIONING, None, (Install(),)),
        (INSTALLED, R.RUNNING, None, ()),
        (replace(MACHINE, failure="no sudo"), R.TERMINATING, "no sudo", ()),
        (replace(MACHINE, attempts=3, last_error="away"), R.PROVISIONING, None, (Install(),)),
        (
            replace(MACHINE, attempts=3, last_error="away", created_at=NOW - REACHED_WITHIN),
            R.TERMINATING,
            "away",
            (),
        ),
        (replace(INSTALLED, status=R.RUNNING), R.RUNNING, None, ()),
        (replace(INSTALLED, status=R.RUNNING, delete_requested=True), R.TERMINATING, None, ()),
        (LEAVING, R.TERMINATING, None, (Uninstall(),)),
        (replace(LEAVING, is_gone=True), R.TERMINATED, None, ()),
        (
            replace(LEAVING, attempts=MAX_REMOVALS, last_error="away"),
            R.TERMINATED,
            "The gateway stays on the machine: away",
            (),
        ),
        (replace(LEAVING, attempts=MAX_REMOVALS, last_error="away", is_installed=False), R.TERMINATED, None, ()),
        (replace(LEAVING, status=R.TERMINATED), R.TERMINATED, None, ()),
    ],
)
def test_a_machine(
    machine: ReplicaSnapshot, status: GatewayReplicaStatus, message: str | None, effects: Any
) -> None:
    decision = replicas.decide(machine, NOW)
    assert (decision.status, decision.message, decision.effects) == (status, message, effects)
    if status is not machine.status:
        assert decision.wake == (machine.gateway_key,)


@given(st.sampled_from(R), st.booleans(), st.booleans(), st.sampled_from([None, "no"]), st.integers(0, 9))
def test_a_machine_that_is_to_go_never_comes_back(
    status: GatewayReplicaStatus, is_installed: bool, is_gone: bool, failure: str | None, attempts: int
) -> None:
    machine = replace(
        MACHINE,
        status=status,
        is_installed=is_installed,
        is_gone=is_gone,
        failure=failure,
        attempts=attempts,
        delete_requested=True,
    )
    decision = replicas.decide(machine, NOW)
    assert decision.status in (R.TERMINATING, R.TERMINATED)
    assert decision.status is R.TERMINATED or decision.effects or decision.again
