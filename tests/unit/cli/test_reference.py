"""Every command, alias, argument and flag of the reference's page about the command line is in our parser."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from dstack.cli.commands.apply import TYPES, add_type_arguments
from dstack.cli.main import build_parser

PAGE = (Path(__file__).parents[2] / "reference" / "cli.md").read_text()
FLAG = re.compile(r"(?<![\w-])--?[a-z][\w-]*", re.IGNORECASE)
ALIASES = ("destroy",)


def section(title: str) -> str:
    return PAGE.split(f"\n{title}\n", 1)[1].split("\n## ", 1)[0]


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table, as cells, without the lines of dashes; bars in code do not part cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [
            [cell.strip() for cell in re.findall(r"\|((?:`[^`]*`|[^|`])*)(?=\|)", line)]
            for line in block.splitlines()
            if not re.fullmatch(r"[|\s-]+", line)
        ]
        for block in blocks
    ]


def parser_of(command: str) -> argparse.ArgumentParser:
    """Of `export create` or `ps`; KeyError when there is none."""
    parser = build_parser(complete=True)
    for word in command.split():
        actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parser = actions[0].choices[word]
    return parser


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def profile_flags() -> set[str]:
    rows = tables(section("### `apply`"))[2][1:]
    return {flag for row in rows for flag in FLAG.findall(" ".join(code(row[0])))}


def other_commands() -> list[tuple[str, set[str]]]:
    """Each command of the second table with its flags; of several in a row, deleting has those beside it, or
    the one that is named there."""
    found: list[tuple[str, set[str]]] = []
    for names, beside, *_ in tables(section("### Others"))[0][1:]:
        flags = {flag for span in code(beside) for flag in FLAG.findall(span)}
        flags |= profile_flags() if "profile flags" in beside else set()
        commands = [(named(span, code(names)[0]), set(FLAG.findall(span))) for span in code(names)]
        is_list = {command.removesuffix(" list") for command, _ in commands} == {commands[0][0]}
        owner = re.match(r"`(\w+)` also", beside)
        for command, inline in commands:
            if owner:
                found.append((command, inline | (flags if command.endswith(owner[1]) else set())))
                continue
            takes = is_list or len(commands) == 1 or command.endswith("delete") or command in ALIASES
            found.append((command, inline | (flags if takes else set())))
    return found


def named(span: str, first: str) -> str:
    """The command of `export create NAME`; `set NAME VALUE` belongs to the group of the row's first one."""
    words = [word for word in span.split() if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
    group = first.split()[0]
    return " ".join(words if words[0] == group or words[0] in ALIASES else [group, *words])


OTHERS = other_commands()
OURS = {"gateway": {"--ssh-identity"}}
"""By type: flags that the reference has for others only. Gateways on hosts of one's own are an addition."""


def test_the_page_is_read() -> None:
    names = {name for name, _ in OTHERS}
    assert {"attach", "delete", "export update", "fleet get", "import list", "volume get", "server"} <= names
    assert dict(OTHERS)["export update"] >= {"--add-importer", "--set-global"}
    assert {"--profile", "-R", "--spot-auto", "--retry-duration"} <= profile_flags()


@pytest.mark.parametrize(("command", "flags"), OTHERS, ids=[name for name, _ in OTHERS])
def test_a_command_has_its_flags(command: str, flags: set[str]) -> None:
    assert flags - flags_of(parser_of(command)) == set()


def test_apply_has_its_flags() -> None:
    common, by_type, _, *_ = tables(section("### `apply`"))
    parser = parser_of("apply")
    wanted = {flag for row in [*common[1:], *by_type[1:]] for span in code(row[0]) for flag in FLAG.findall(span)}
    assert wanted - flags_of(parser) == set()
    assert profile_flags() - flags_of(parser) == set()


@pytest.mark.parametrize("number", range(6))
def test_a_type_has_the_flags_of_its_column(number: int) -> None:
    by_type = tables(section("### `apply`"))[1]
    kind = {"dev-env": "dev-environment"}.get(by_type[0][number + 1], by_type[0][number + 1])
    assert kind in TYPES
    parser = argparse.ArgumentParser(add_help=False)
    add_type_arguments(parser, kind)
    here = flags_of(parser) - OURS.get(kind, set())
    for row in by_type[1:]:
        flags = {flag for span in code(row[0]) for flag in FLAG.findall(span)}
        flags = flags or (profile_flags() if row[0].startswith("profile flags") else set())
        assert flags <= here if row[number + 1] == "x" else not flags & here, (kind, row[0])


def test_presets_have_their_flags() -> None:
    sentence = section("### `apply`").split("Preset type adds: ", 1)[1].split("\n", 1)[0]
    parser = argparse.ArgumentParser(add_help=False)
    add_type_arguments(parser, "preset")
    here = flags_of(parser)
    assert {*FLAG.findall(" ".join(code(sentence))), "--name", *profile_flags()} <= here
    assert "--env" not in here


def test_where_the_project_may_be_chosen() -> None:
    sentence = PAGE.split("`--project NAME` exists on: ", 1)[1].split(".", 1)[0]
    for command in sentence.split(", "):
        assert "--project" in flags_of(parser_of(command)), command


def test_the_alias_of_delete() -> None:
    assert flags_of(parser_of("destroy")) == flags_of(parser_of("delete"))
