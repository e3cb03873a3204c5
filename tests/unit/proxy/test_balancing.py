"""Which replica gets a request, and which are left out for a while."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.proxy.balancer import LOST_ANSWERS, MAX_FAILING, MAX_PAUSE_SECONDS, Balancer
from dstack.proxy.balancing import ByPrefix, BySession, LeastRequests, Policy, choose, ranked, tag

HEADER, COOKIE = BySession(b"x-session", None), BySession(None, b"tied")
REPLICAS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True)
KEYS = st.binary(min_size=1, max_size=8)
POLICIES = st.sampled_from([None, LeastRequests(), ByPrefix(10, 1.25), HEADER, COOKIE])


def first(replicas: Sequence[str]) -> str:
    return replicas[0]


CASES: list[tuple[Policy, bytes | None, dict[str, int], str]] = [
    (None, None, {"a": 9}, "a"),
    (None, b"key", {"a": 9}, "a"),
    (LeastRequests(), None, {}, "a"),
    (LeastRequests(), None, {"a": 1, "b": 1}, "c"),
    (LeastRequests(), None, {"a": 3, "b": 2, "c": 3}, "b"),
    (ByPrefix(10, 1.25), None, {"a": 1, "c": 1}, "b"),
    (HEADER, None, {"a": 1, "b": 1}, "c"),
    (COOKIE, tag("b"), {"b": 100}, "b"),
    (COOKIE, tag("gone"), {"a": 1}, "b"),
    (COOKIE, None, {"a": 1}, "b"),
]


@pytest.mark.parametrize(("policy", "key", "in_flight", "chosen"), CASES)
def test_choices(policy: Policy, key: bytes | None, in_flight: dict[str, int], chosen: str) -> None:
    assert choose(policy, ("a", "b", "c"), key, in_flight, first) == chosen


@given(policy=POLICIES, replicas=REPLICAS, key=st.none() | KEYS, loads=st.lists(st.integers(0, 50), max_size=12))
def test_the_choice_is_always_one_of_the_replicas(
    policy: Policy, replicas: list[str], key: bytes | None, loads: list[int]
) -> None:
    in_flight = dict(zip(replicas, loads, strict=False))
    assert choose(policy, replicas, key, in_flight, random.choice) in replicas


@given(replicas=REPLICAS, key=KEYS, loads=st.lists(st.integers(0, 50), max_size=12), factor=st.floats(1, 3))
def test_no_replica_gets_more_than_its_bound(
    replicas: list[str], key: bytes, loads: list[int], factor: float
) -> None:
    in_flight = dict(zip(replicas, loads, strict=False))
    chosen = choose(ByPrefix(10, factor), replicas, key, in_flight, first)
    bound = math.ceil(factor * (sum(in_flight.values()) + 1) / len(replicas))
    assert in_flight.get(chosen, 0) < bound
    before = ranked(replicas, key)[: ranked(replicas, key).index(chosen)]
    assert all(in_flight.get(replica, 0) >= bound for replica in before), "the first that has room"


@given(replicas=REPLICAS, keys=st.lists(KEYS, max_size=30))
def test_a_replica_that_goes_moves_only_its_own_keys(replicas: list[str], keys: list[bytes]) -> None:
    gone, left = replicas[0], replicas[1:]
    for key in keys:
        owner = ranked(replicas, key)[0]
        if left and owner != gone:
            assert ranked(left, key)[0] == owner


def test_keys_are_spread_evenly() -> None:
    replicas = [f"127.0.0.1:{port}" for port in range(8000, 8004)]
    owners = Counter(ranked(replicas, str(number).encode())[0] for number in range(4000))
    assert all(800 < owners[replica] < 1200 for replica in replicas)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def balancer(clock: Clock) -> Balancer:
    return Balancer(clock, first)


def test_a_replica_that_takes_no_connection_is_left_out_ever_longer(balancer: Balancer, clock: Clock) -> None:
    pauses = []
    for _ in range(9):
        balancer.failed("a", is_unreachable=True)
        begun = clock.now
        while balancer.choose(None, ("a", "b"), None, ()) == "b":
            clock.now += 0.5
        pauses.append(clock.now - begun)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, MAX_PAUSE_SECONDS]
    balancer.succeeded("a")
    assert balancer.failing == {}
    assert balancer.choose(None, ("a", "b"), None, ()) == "a"


def test_one_request_finds_out_whether_it_is_back(balancer: Balancer, clock: Clock) -> None:
    balancer.failed("a", is_unreachable=True)
    clock.now += 1
    assert [balancer.choose(None, ("a", "b"), None, ()) for _ in range(3)] == ["a", "b", "b"]


def test_lost_answers_count_only_in_a_row(balancer: Balancer) -> None:
    for _ in range(LOST_ANSWERS - 1):
        balancer.failed("a", is_unreachable=False)
    assert balancer.choose(None, ("a", "b"), None, ()) == "a"
    balancer.succeeded("a")
    for _ in range(LOST_ANSWERS):
        assert balancer.choose(None, ("a", "b"), None, ()) == "a"
        balancer.failed("a", is_unreachable=False)
    assert balancer.choose(None, ("a", "b"), None, ()) == "b"


def test_where_all_are_left_out_none_is(balancer: Balancer) -> None:
    for replica in "ab":
        balancer.failed(replica, is_unreachable=True)
    assert balancer.choose(None, ("a", "b"), None, ()) == "a"
    assert balancer.choose(None, ("a", "b"), None, {"a"}) == "b"


def test_what_is_remembered_is_bounded(balancer: Balancer) -> None:
    for number in range(MAX_FAILING + 10):
        balancer.failed(str(number), is_unreachable=True)
    assert len(balancer.failing) == MAX_FAILING


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_requests_at_work_are_counted(steps: list[tuple[bool, str]]) -> None:
    balancer, expected = Balancer(), Counter[str]()
    for begins, replica in steps:
        if begins:
            balancer.begin(replica)
            expected[replica] += 1
        elif expected[replica]:
            balancer.end(replica)
            expected[replica] -= 1
    assert balancer.in_flight == {replica: count for replica, count in expected.items() if count}
