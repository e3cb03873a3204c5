"""What people are told about mistakes in their files."""

import pytest
from pydantic import ValidationError

from dstack.core.configurations import TaskConfiguration, parse_apply_configuration
from dstack.core.configurations.problems import ConfigurationError, describe_problems, field_names, load_yaml


def complaint(text: str) -> str:
    with pytest.raises(ValidationError) as caught:
        parse_apply_configuration(load_yaml(text, "a.yml"))
    known = field_names(TaskConfiguration)
    return str(describe_problems(caught.value, text=text, file="a.yml", known_fields=known))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("type: task\ncomands:\n - a\n", "a.yml:2: unknown field 'comands'; did you mean 'commands'?"),
        (
            "type: task\ncommands: [a]\nresources:\n  gpu: 'H100:'\n",
            "a.yml:4: 'resources.gpu': 'H100:' is not a GPU",
        ),
        ("type: service\ncommands: [a]\n", "a.yml:1: the field 'port' is missing"),
        ("type: tusk\n", "a.yml:1: 'type' is 'tusk'; it must be one of"),
        ("name: x\n", "a.yml:1: the field 'type' is missing"),
        ("type: task\nname: x\n", "a.yml:1: a task needs 'commands'"),
    ],
)
def test_mistake_is_located_and_explained(text: str, says: str) -> None:
    assert says in complaint(text)


def test_broken_yaml_names_the_line() -> None:
    with pytest.raises(ConfigurationError, match=r"a\.yml:3: this is not valid YAML"):
        load_yaml("type: task\ncommands: [a\n", "a.yml")
