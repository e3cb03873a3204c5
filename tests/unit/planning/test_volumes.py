"""Which volumes a job gets, and where it can run for their sake."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from dstack.core.configurations.mounts import InstanceMountPoint, VolumeMountPoint
from dstack.server.planning.volumes import (
    KnownVolume,
    Mount,
    Place,
    attach,
    choose,
    is_coming,
    mounts_of,
    places,
    problem,
    taken,
)

HERE, ELSEWHERE = Place("fake", "eu"), Place("fake", "us")
A, B = UUID(int=1), UUID(int=2)
FREE = KnownVolume(UUID(int=10), "free", HERE)
FAR = KnownVolume(UUID(int=11), "far", ELSEWHERE)
USED = KnownVolume(UUID(int=12), "used", HERE, attached_to=A, is_used=True)
LEAVING = replace(USED, name="leaving", is_used=False)
COMING = KnownVolume(UUID(int=13), "coming", None)
FAILED = KnownVolume(UUID(int=14), "failed", None, problem="it failed (no quota)")
ALL = {one.name: one for one in (FREE, FAR, USED, LEAVING, COMING, FAILED)}


def mount(*names: str) -> tuple[Mount, ...]:
    return (Mount(names, "/data"),)


@pytest.mark.parametrize(
    ("names", "place", "instance", "expected"),
    [
        (("free",), HERE, A, "free"),
        (("free",), HERE, None, "free"),
        (("free",), ELSEWHERE, A, None),
        (("free",), Place("other", "eu"), A, None),
        (("free",), Place("fake", "EU", "zone-a"), A, "free"),
        (("used",), HERE, A, "used"),
        (("used",), HERE, B, None),
        (("used",), HERE, None, None),
        (("used", "free"), HERE, B, "free"),
        (("leaving",), HERE, A, None),
        (("coming", "free"), HERE, A, "free"),
        (("failed", "free"), HERE, A, "free"),
        (("far", "free"), HERE, A, "free"),
        (("unknown",), HERE, A, None),
    ],
)
def test_the_first_that_can_be_had_is_chosen(
    names: tuple[str, ...], place: Place, instance: UUID | None, expected: str | None
) -> None:
    chosen = choose(mount(*names), ALL, place, instance)
    assert (None if chosen is None else chosen[0].volume.name) == expected


def test_zones_must_agree_where_both_are_known() -> None:
    zoned = {"v": replace(FREE, place=Place("fake", "eu", "a"))}
    assert choose(mount("v"), zoned, Place("fake", "eu", "b"), A) is None
    assert choose(mount("v"), zoned, Place("fake", "eu", "a"), A) is not None


def test_where_new_instances_may_be() -> None:
    assert places(mount("far", "free"), ALL) == [ELSEWHERE, HERE]
    assert places((*mount("far", "free"), *mount("free")), ALL) == [HERE]
    assert places((*mount("far"), *mount("free")), ALL) == []
    assert places(mount("used"), ALL) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("free",), None),
        (("coming",), None),
        (("unknown",), "Volume unknown does not exist"),
        (("failed",), "Volume failed is not usable: it failed (no quota)"),
        (("failed", "free"), None),
    ],
)
def test_why_a_mount_can_never_be_had(names: tuple[str, ...], expected: str | None) -> None:
    assert problem(mount(*names), ALL) == expected


def test_what_is_used_and_what_is_about_to_be_free() -> None:
    assert taken(mount("used"), ALL) == "Volume used is used by another job"
    assert taken(mount("used", "free"), ALL) is None
    assert [is_coming(mount(name), ALL) for name in ("leaving", "coming", "free", "failed")] == [
        True,
        True,
        False,
        False,
    ]


def test_what_is_attached_is_used_there_only() -> None:
    chosen = choose(mount("free"), ALL, HERE, B)
    assert chosen is not None
    after = attach(ALL, chosen, B)
    assert choose(mount("free"), after, HERE, A) is None
    assert choose(mount("free"), after, HERE, B) is not None


def test_folders_of_the_host_are_no_volumes() -> None:
    points: list[VolumeMountPoint | InstanceMountPoint] = [
        VolumeMountPoint(name="v", path="/v"),
        InstanceMountPoint(instance_path="/a", path="/b"),
        VolumeMountPoint(name=["x", "y"], path="/w"),
    ]
    assert mounts_of(points) == (Mount(("v",), "/v"), Mount(("x", "y"), "/w"))
    assert mounts_of(None) == ()
