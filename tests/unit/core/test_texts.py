"""Durations, names, interpolation, cron expressions and errors."""

import inspect
import random
from datetime import datetime, timezone

import pytest

from dstack.core import errors
from dstack.core.cron import CronExpression, next_trigger
from dstack.core.durations import format_duration, parse_duration
from dstack.core.interpolation import InterpolationError, fill_nodes, interpolate, references
from dstack.core.names import check_resource_name, random_name
from dstack.core.resources import Range, format_memory, parse_memory


@pytest.mark.parametrize("text", ["1s", "90s", "1h30m", "2d", "1w1d", "0s"])
def test_b23_duration_is_written_as_it_is_read(text: str) -> None:
    seconds = parse_duration(text)
    assert parse_duration(format_duration(seconds)) == seconds


def test_b23_binary_units_are_sizes() -> None:
    assert (parse_memory("16GiB"), parse_memory("512MiB"), format_memory(0.5)) == (16.0, 0.5, "512MB")


def test_random_names_are_names_and_repeatable() -> None:
    for seed in range(100):
        name = random_name(random.Random(seed))
        check_resource_name(name)
        assert name == random_name(random.Random(seed))


@pytest.mark.parametrize("name", ["a", "A", "1a", "a_b", "a" * 42, "", "a\n"])
def test_bad_names_are_explained(name: str) -> None:
    with pytest.raises(ValueError, match="not a valid run name"):
        check_resource_name(name)


VALUES = {"env": {"A": "1"}}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("x ${{ env.A }} y", "x 1 y"),
        ("${{env.A}}", "1"),
        ("$${{ env.A }}", "${{ env.A }}"),
        ("$HOME $$", "$HOME $"),
    ],
)
def test_interpolation(text: str, result: str) -> None:
    assert interpolate(text, VALUES) == result


@pytest.mark.parametrize("text", ["${{ env.B }}", "${{ x.A }}", "${{ env }}", "${{ a.b.c }}", "${{ env.A"])
def test_bad_references_are_errors(text: str) -> None:
    with pytest.raises(InterpolationError):
        interpolate(text, VALUES)


def test_unknown_namespaces_may_be_left_to_the_server() -> None:
    text = "${{ env.A }} ${{ secrets.s }} $$"
    assert interpolate(text, VALUES, keep_unknown_namespaces=True) == "1 ${{ secrets.s }} $$"
    assert list(references(text)) == [("env", "A"), ("secrets", "s")]


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("0 8 * * *", "2026-03-02T08:00"),
        ("*/15 * * * *", "2026-03-01T12:15"),
        ("0 8 * * mon-fri", "2026-03-02T08:00"),
        ("0 0 29 feb *", "2028-02-29T00:00"),
        ("0 12 1 3 *", "2027-03-01T12:00"),
    ],
)
def test_next_trigger(expression: str, due: str) -> None:
    now = datetime(2026, 3, 1, 12, 0, 30, tzinfo=timezone.utc)
    assert next_trigger([expression], now) == datetime.fromisoformat(due).replace(tzinfo=timezone.utc)


def test_a_day_that_never_comes() -> None:
    assert CronExpression.parse("0 0 30 2 *").next_after(datetime(2026, 1, 1, tzinfo=timezone.utc)) is None


def test_ranges() -> None:
    low, high = Range[int](min=2), Range[int](max=8)
    both = low.intersection(high)
    assert both is not None
    assert (str(both), both.contains(8), both.contains(9)) == ("2..8", True, False)
    assert Range[int](min=9).intersection(high) is None


def test_every_request_error_has_a_status_and_a_text() -> None:
    kinds = [
        kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.RequestError)
    ]
    assert len(kinds) > 5
    for kind in kinds:
        assert 400 <= kind.status < 500
        assert kind.default_message
        assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("ssh ${{ groups[0].nodes[1].IP_ADDRESS }}", "ssh 10.0.0.2"),
        ("${{groups[work-er].nodes[0].IP_ADDRESS}}", "10.0.0.3"),
        ("echo $$ $HOME ${X}", "echo $$ $HOME ${X}"),
        ("echo '$${{ groups[0].nodes[0].IP_ADDRESS }}'", "echo '${{ groups[0].nodes[0].IP_ADDRESS }}'"),
        ("echo '${{ matrix.os }}'", "echo '${{ matrix.os }}'"),
    ],
)
def test_nodes_in_commands(text: str, result: str) -> None:
    addresses = {"0.0": "10.0.0.1", "0.1": "10.0.0.2", "work-er.0": "10.0.0.3"}
    assert fill_nodes(text, addresses) == result


def test_a_node_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(InterpolationError, match=r"no such node; there are groups\[0\]\.nodes\[0\]"):
        fill_nodes("${{ groups[0].nodes[7].IP_ADDRESS }}", {"0.0": "10.0.0.1"})


def test_references_to_nodes_are_left_to_the_server() -> None:
    text = "${{ run.args }} ${{ groups[a].nodes[0].IP_ADDRESS }}"
    filled = interpolate(text, {"run": {"args": "x"}}, keep_unknown_namespaces=True)
    assert filled == "x ${{ groups[a].nodes[0].IP_ADDRESS }}"
    assert list(references(text)) == [("run", "args"), ("groups", "a.0")]
