"""Names of resources: what may be one, and new ones at random."""

from __future__ import annotations

import random
import re

RESOURCE_NAME = re.compile(r"[a-z][a-z0-9-]{1,40}")
PROJECT_NAME = re.compile(r"[a-zA-Z0-9-_]{1,50}")
GROUP_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")

_ADJECTIVES = """
    able amber bold brave bright brisk calm clear clever cosy crisp curious daring eager early fair fast
    fine fresh gentle glad golden grand green happy honest jolly keen kind light lively lucky mellow
    merry mighty neat nimble noble polite proud quick quiet rapid ready sharp shiny silent silver smart
    smooth snug solid steady strong sunny swift tidy tiny vivid warm wise witty young
"""
_NOUNS = """
    badger bear beaver bee bison bobcat camel cat cheetah cobra condor crane cricket crow deer dolphin
    dove duck eagle eel elk falcon ferret finch fox frog gazelle gecko goose hare hawk heron horse ibex
    jaguar jay koala lark lemur leopard lion lizard llama lynx magpie marten mole moose newt ocelot orca
    osprey otter owl panda panther parrot pelican penguin puffin puma quail rabbit raven robin salmon
    seal shark sparrow stork swan tiger toad trout turtle viper walrus weasel whale wolf wombat yak
    zebra
"""


def check_resource_name(name: str, kind: str = "run") -> None:
    """Raises ValueError unless the name may be that of a run, fleet, volume, gateway or secret."""
    if RESOURCE_NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} is not a valid {kind} name: 2 to 41 lower-case letters, digits and dashes, starting with a"
            " letter, are allowed"
        )


def check_project_name(name: str) -> None:
    """Raises ValueError unless the name may be that of a project."""
    if PROJECT_NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} is not a valid project name: 1 to 50 letters, digits, dashes and underscores are allowed"
        )


def random_name(chance: random.Random) -> str:
    """A readable name such as `swift-otter-7`. It may be taken; the caller tries again."""
    return f"{chance.choice(_ADJECTIVES.split())}-{chance.choice(_NOUNS.split())}-{chance.randint(1, 99)}"
