"""What happens next to a volume."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.server.orchestrator.volumes.rules import (
    POLL,
    AttachmentFacts,
    DropAttachments,
    EnsureDeleted,
    EnsureDetached,
    EnsureVolume,
    RequestDeletion,
    VolumeSnapshot,
    VolumeState,
    decide,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
S = VolumeState
NEW = VolumeSnapshot(UUID(int=1), UUID(int=2), "v", S.SUBMITTED, idle_since=NOW)
ACTIVE = replace(NEW, status=S.ACTIVE, has_disk=True)
HOST = UUID(int=3)
USED, UNUSED = AttachmentFacts(HOST, True), AttachmentFacts(HOST, False)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("volume", "status", "effects", "writes"),
    [
        (NEW, S.SUBMITTED, (EnsureVolume(),), ()),
        (replace(NEW, has_disk=True), S.ACTIVE, (), ()),
        (replace(NEW, failure="no quota"), S.FAILED, (), ()),
        (replace(NEW, delete_requested=True), S.SUBMITTED, (EnsureDeleted(),), ()),
        (ACTIVE, S.ACTIVE, (), ()),
        (replace(ACTIVE, attachments=(USED,)), S.ACTIVE, (), ()),
        (replace(ACTIVE, attachments=(UNUSED,)), S.ACTIVE, (EnsureDetached(HOST),), ()),
        (
            replace(ACTIVE, attachments=(replace(UNUSED, is_detached=True),)),
            S.ACTIVE,
            (),
            (DropAttachments((HOST,)),),
        ),
        (replace(ACTIVE, delete_requested=True), S.ACTIVE, (EnsureDeleted(),), ()),
        (replace(ACTIVE, delete_requested=True, is_gone=True), S.DELETED, (), ()),
        (replace(ACTIVE, delete_requested=True, is_external=True), S.DELETED, (), ()),
        (replace(ACTIVE, cleanup_after=HOUR), S.ACTIVE, (), ()),
        (replace(ACTIVE, cleanup_after=HOUR, idle_since=NOW - HOUR), S.ACTIVE, (), (RequestDeletion(),)),
        (replace(ACTIVE, cleanup_after=HOUR, idle_since=NOW - HOUR, attachments=(USED,)), S.ACTIVE, (), ()),
        (replace(NEW, status=S.FAILED), S.FAILED, (), ()),
        (replace(NEW, status=S.FAILED, delete_requested=True, is_gone=True), S.DELETED, (), ()),
        (replace(NEW, status=S.DELETED), S.DELETED, (), ()),
    ],
)
def test_what_is_next(volume: VolumeSnapshot, status: VolumeState, effects: Any, writes: Any) -> None:
    decision = decide(volume, NOW)
    assert (decision.status, decision.effects, decision.writes) == (status, effects, writes)


def test_when_it_is_looked_at_again() -> None:
    assert decide(NEW, NOW).look_again_at == NOW + POLL
    assert decide(replace(ACTIVE, cleanup_after=HOUR), NOW).look_again_at == NOW + HOUR
    assert decide(replace(NEW, failure="no quota"), NOW).message == "no quota"


def test_who_waits_for_it_is_woken() -> None:
    for volume in (
        replace(NEW, has_disk=True),
        replace(ACTIVE, attachments=(replace(UNUSED, is_detached=True),)),
        replace(ACTIVE, delete_requested=True, is_gone=True),
    ):
        assert decide(volume, NOW).wake == (volume.placement_key,)


@given(
    st.builds(
        VolumeSnapshot,
        id=st.just(NEW.id),
        project_id=st.just(NEW.project_id),
        name=st.just("v"),
        status=st.sampled_from(VolumeState),
        idle_since=st.just(NOW),
        is_external=st.booleans(),
        has_disk=st.booleans(),
        failure=st.none() | st.just("x"),
        attachments=st.lists(
            st.builds(AttachmentFacts, st.just(HOST), st.booleans(), st.booleans()), max_size=1
        ).map(tuple),
        cleanup_after=st.none() | st.just(HOUR),
        delete_requested=st.booleans(),
        is_gone=st.booleans(),
    )
)
def test_it_is_never_stuck_and_ends_once(volume: VolumeSnapshot) -> None:
    decision = decide(volume, NOW + 2 * HOUR)
    if volume.status is S.DELETED:
        assert (decision.status, decision.effects) == (S.DELETED, ())
    if decision.effects:
        assert decision.look_again_at is not None
    if volume.delete_requested and volume.status is not S.DELETED:
        assert decision.status is S.DELETED or decision.effects == (EnsureDeleted(),)
