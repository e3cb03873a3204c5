"""Fleet settings and run settings, one rule of the reference a row."""

from __future__ import annotations

from typing import Any

import pytest

from dstack.core.configurations.fleet import FleetConfiguration
from dstack.core.configurations.profiles import Profile
from dstack.core.fleets import FleetSpec
from dstack.core.instances import Requirements
from dstack.core.resources import ResourcesSpec
from dstack.server.planning.combining import Combined, NotUsable, combine, of_fleet, reusing


def fleet(**settings: Any) -> FleetSpec:
    configuration = FleetConfiguration.model_validate({"nodes": "0..2", **settings})
    return FleetSpec(configuration=configuration, profile=Profile())


def run(**settings: Any) -> tuple[Requirements, Profile]:
    resources = ResourcesSpec.model_validate(settings.pop("resources", {}))
    profile = Profile.model_validate(settings)
    policy = settings.get("spot_policy", "on-demand")
    requirements = Requirements(
        resources=resources,
        max_price=profile.max_price,
        spot=None if policy == "auto" else policy == "spot",
        reservation=profile.reservation,
        multinode=False,
    )
    return requirements, profile


def both(fleet_settings: dict[str, Any], run_settings: dict[str, Any]) -> Combined | NotUsable:
    return combine(fleet(**fleet_settings), *run(**run_settings))


@pytest.mark.parametrize("setting", ["regions", "availability_zones", "instance_types"])
@pytest.mark.parametrize(
    ("of_fleet", "of_run", "result"),
    [
        (None, None, None),
        (["a", "B"], None, {"a", "b"}),
        (None, ["A"], {"a"}),
        (["a", "B"], ["b", "c"], {"b"}),
        (["a"], ["b"], "not usable"),
    ],
)
def test_names_are_intersected_whatever_their_case(setting: str, of_fleet: Any, of_run: Any, result: Any) -> None:
    combined = both({setting: of_fleet}, {setting: of_run})
    if result == "not usable":
        assert combined == NotUsable(f"{setting}: the fleet has a, the run has b")
    else:
        assert isinstance(combined, Combined)
        assert getattr(combined.limits, setting) == result


@pytest.mark.parametrize(
    ("of_fleet", "of_run", "result"),
    [(["aws", "gcp"], ["gcp"], {"gcp"}), (None, ["aws"], {"aws"}), (["aws"], ["gcp"], None)],
)
def test_backends_are_intersected(of_fleet: Any, of_run: Any, result: Any) -> None:
    combined = both({"backends": of_fleet}, {"backends": of_run})
    if result is None:
        assert combined == NotUsable("backends: the fleet has aws, the run has gcp")
    else:
        assert isinstance(combined, Combined)
        assert combined.limits.backends == result


@pytest.mark.parametrize(
    ("of_fleet", "of_run", "spot"),
    [
        (None, None, False),
        (None, "spot", True),
        (None, "auto", None),
        ("spot", None, True),
        ("auto", None, None),
        ("auto", "spot", True),
        ("auto", "on-demand", False),
        ("spot", "auto", True),
        ("on-demand", "auto", False),
        ("spot", "spot", True),
        ("spot", "on-demand", "conflict"),
        ("on-demand", "spot", "conflict"),
    ],
)
def test_auto_yields_and_a_conflict_of_spot_policies_excludes(of_fleet: Any, of_run: Any, spot: Any) -> None:
    combined = both({"spot_policy": of_fleet}, {} if of_run is None else {"spot_policy": of_run})
    if spot == "conflict":
        assert combined == NotUsable(f"spot_policy: the fleet has {of_fleet}, the run has {of_run}")
    else:
        assert isinstance(combined, Combined)
        assert combined.requirements.spot is spot


@pytest.mark.parametrize(
    ("of_fleet", "of_run", "result"),
    [(None, None, None), (60, None, 60), (None, 30, 30), (60, 30, 30), ("off", 30, 30), (60, "off", 60)],
)
def test_the_shorter_idle_duration_wins_and_off_loses(of_fleet: Any, of_run: Any, result: int | None) -> None:
    combined = both({"idle_duration": of_fleet}, {"idle_duration": of_run})
    assert isinstance(combined, Combined)
    assert combined.idle_duration == result


def test_the_lower_price_wins_and_tags_are_united() -> None:
    combined = both(
        {"max_price": 2.0, "tags": {"a": "fleet", "b": "fleet"}}, {"max_price": 3.0, "tags": {"a": "run"}}
    )
    assert isinstance(combined, Combined)
    assert combined.requirements.max_price == 2.0
    assert combined.tags == {"a": "run", "b": "fleet"}


def test_reservations_must_be_equal() -> None:
    combined = both({"reservation": "r1"}, {})
    assert isinstance(combined, Combined)
    assert combined.requirements.reservation == "r1"
    assert both({"reservation": "r1"}, {"reservation": "r2"}) == NotUsable(
        "reservation: the fleet has r1, the run has r2"
    )


@pytest.mark.parametrize(
    ("of_fleet", "of_run", "result"),
    [
        ({"cpu": "4..8"}, {"cpu": "2.."}, {"cpu": "4..8"}),
        ({"cpu": "arm:2.."}, {"cpu": "2.."}, {"cpu": "arm:2.."}),
        ({"memory": "16GB.."}, {"memory": "..32GB"}, {"memory": "16GB..32GB"}),
        ({"disk": "200GB.."}, {"disk": None}, {"disk": "200GB.."}),
        ({"shm_size": "2GB"}, {"shm_size": "1GB"}, {"shm_size": "1GB"}),
        ({"gpu": "nvidia:1..4"}, {"gpu": "2.."}, {"gpu": "nvidia:2..4"}),
        ({"gpu": "A100,H100:1.."}, {"gpu": "h100:1.."}, {"gpu": "h100:1.."}),
        ({"gpu": {"memory": "24GB.."}}, {"gpu": {"memory": "..80GB"}}, {"gpu": {"memory": "24GB..80GB"}}),
        (
            {"gpu": {"compute_capability": "7.5"}},
            {"gpu": {"compute_capability": "8.0"}},
            {"gpu": {"compute_capability": "8.0"}},
        ),
        ({"gpu": None}, {"gpu": "1"}, {"gpu": "1"}),
    ],
)
def test_ranges_of_resources_are_intersected(of_fleet: Any, of_run: Any, result: Any) -> None:
    combined = both({"resources": of_fleet}, {"resources": of_run})
    assert isinstance(combined, Combined)
    assert combined.requirements.resources == ResourcesSpec.model_validate(result)


@pytest.mark.parametrize(
    ("of_fleet", "of_run", "reason"),
    [
        ({"cpu": "..4"}, {"cpu": "8.."}, "cpu: the fleet has ..4, the run needs 8.."),
        ({"cpu": "arm:2.."}, {"cpu": "x86:2.."}, "cpu.arch: the fleet has arm, the run has x86"),
        ({"memory": "..8GB"}, {"memory": "16GB.."}, "memory: the fleet has ..8, the run needs 16.."),
        ({"gpu": "nvidia:1"}, {"gpu": "amd:1"}, "gpu.vendor: the fleet has nvidia, the run has amd"),
        ({"gpu": "A100"}, {"gpu": "H100"}, "gpu.name: the fleet has A100, the run has H100"),
        ({"gpu": "0"}, {"gpu": "1"}, "gpu.count: the fleet has 0, the run needs 1"),
    ],
)
def test_a_fleet_is_not_usable_where_nothing_is_left(of_fleet: Any, of_run: Any, reason: str) -> None:
    assert both({"resources": of_fleet}, {"resources": of_run}) == NotUsable(reason)


def test_what_the_fleet_leaves_open_is_taken_from_its_profile() -> None:
    spec = fleet(regions=["eu"])
    spec.profile = Profile(regions=["us"], max_price=1.0)
    alone = of_fleet(spec)
    assert alone.limits.regions == frozenset({"eu"})
    assert alone.requirements.max_price == 1.0
    assert alone.requirements.spot is False


def test_an_existing_instance_need_only_be_what_the_job_needs() -> None:
    large = fleet(resources={"gpu": "8"}, max_price=1.0, spot_policy="spot")
    requirements, profile = run(resources={"gpu": "1"})
    needed = reusing(large, requirements, profile.spot_policy)
    assert needed == requirements.model_copy(update={"spot": True})
    requirements, profile = run(spot_policy="on-demand")
    assert isinstance(reusing(large, requirements, profile.spot_policy), NotUsable)
