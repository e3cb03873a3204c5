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


TASK = "type: task\ncommands: [a]\n"


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
        (TASK + "nodes: two\n", "a.yml:3: 'nodes' must be a whole number, not 'two'"),
        (TASK + "nodes: 0\n", "a.yml:3: 'nodes' is 0; it must be at least 1"),
        (TASK + "priority: 200\n", "a.yml:3: 'priority' is 200; it must be at most 100"),
        (TASK + "max_price: -1\n", "a.yml:3: 'max_price' is -1; it must be greater than 0"),
        (TASK + "env: [A=1]\nports: 80\n", "a.yml:4: 'ports' must be a list, not 80"),
        (TASK + "schedule: '0 8 * * *'\n", "a.yml:3: 'schedule' must be a map of fields, not '0 8 * * *'"),
        (TASK + "single_branch: maybe\n", "a.yml:3: 'single_branch' must be true or false, not 'maybe'"),
        (TASK + "name: [x]\n", "a.yml:3: 'name' must be a text, not a list"),
        (TASK + "setup: [a, null]\n", "a.yml:3: 'setup.1' must be a text, not nothing"),
        (TASK + "instances: []\n", "a.yml:3: 'instances' is empty"),
        (TASK + "backends: [aws, gpc]\n", "'backends.1' is 'gpc'; it must be one of amddevcloud, aws,"),
        (TASK + "backends: [aws, gpc]\n", "did you mean 'gcp'?"),
        (TASK + "stop_criteria: first\n", "'stop_criteria' is 'first'; it must be one of all-done, master-done"),
        (TASK + "retry:\n  on_events: [oops]\n", "a.yml:4: 'retry.on_events.0' is 'oops'; it must be one of"),
        (TASK + "schedule: {cron: '@daily'}\n", "a.yml:3: 'schedule.cron': '@daily' is not a cron expression"),
        (TASK + "volumes: [data]\n", "'volumes.0': 'data' is not a mount: write 'volume-name:/path'"),
    ],
)
def test_mistake_is_located_and_explained(text: str, says: str) -> None:
    assert says in complaint(text)


def test_broken_yaml_names_the_line() -> None:
    with pytest.raises(ConfigurationError, match=r"a\.yml:3: this is not valid YAML"):
        load_yaml("type: task\ncommands: [a\n", "a.yml")


def test_one_mistake_is_told_once() -> None:
    assert complaint(TASK + "retry:\n  on_events: [oops]\n").count("\n") == 0


def test_a_colon_where_none_may_be_is_explained() -> None:
    with pytest.raises(ConfigurationError, match="put a text that has a colon in quotes"):
        load_yaml("resources:\n  gpu: H100:\n", "a.yml")
