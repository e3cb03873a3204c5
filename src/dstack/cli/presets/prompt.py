"""The task of the coding agent, in words."""

from __future__ import annotations

import yaml

from dstack.cli.presets.report import report_schema
from dstack.cli.presets.sessions import Session
from dstack.core.configurations.preset import PresetConfiguration, PresetModelBase
from dstack.core.configurations.profiles import ProfileParams

TASK = """\
# Task

Find a good way to serve a language model with `dstack`, by trying. What counts is output tokens per second at
the load below, within the limits below.

Model: {model}
Limits: a context of at least {min_context_length} tokens; at most {max_ttft} ms to the first token for 99 of
100 requests.
Load: {concurrency} requests at a time, {load}, through the service's OpenAI-compatible API.
Trials: measure exactly {trials} ways to serve it, one after another. {baseline}

## How to work

- `dstack` in your PATH is logged in. `dstack offer --json` shows what machines there are, `dstack apply -f
  FILE -y -d` starts a service, `dstack run get NAME --json` tells its state and URL, `dstack logs NAME` its
  log, `dstack stop NAME -y` ends it. `dstack apply -h service` shows the flags, and the API of the service
  wants `Authorization: Bearer $DSTACK_TOKEN`.
- Names of all runs begin with `{run_prefix}`, such as `{run_prefix}-1`. Touch no other runs, and no fleets.
- Each configuration of yours is `type: service` with `model: {name}`, the fields below as they are, and an
  image, commands, port and resources of your choice.
- Stop the runs of a trial once it is measured. Never leave more than one of them running.
- Write what you learn to NOTES.md in this folder as you go: you may be stopped and asked to go on.
- Tell the user in one line what you do and found: `progress "text"`. After measuring a trial: `progress
  "text" --trial N`.
- Use a known tool to measure, such as the benchmark of the serving engine. Numbers must be measured, never
  estimated.

Fields of each configuration:

```yaml
{fields}```

## How to end

Start the best of the trials again, see that it answers, and leave that run running. Then write `report.json`
in this folder, by this JSON schema, and end:

```json
{schema}
```

`trials` is the number of measured trials, `run_name` the name of the run you left running, `service` the text
of its configuration. When no way fits the limits, stop all of your runs and write `"success": false` with the
reason in `failure`.
"""
WISHES = "\n## Wishes of the user\n\n{text}\n"
PREVIOUS = """
## What others found before

The folders in `previous/` hold notes, progress and reports: start from them.
"""
AGAIN = "\n## Going on\n\nYou were interrupted before: read NOTES.md and progress.jsonl, and go on from there.\n"


def make_prompt(session: Session, wishes: str | None, *, again: bool = False) -> str:
    """What the agent reads first."""
    wanted = session.wanted
    text = TASK.format(
        model=_model(wanted),
        min_context_length=wanted.min_context_length,
        max_ttft=wanted.max_ttft,
        concurrency=wanted.concurrency,
        load=_load(wanted),
        trials=wanted.trials,
        baseline="The first is the plainest one, to compare with." if wanted.baseline is not False else "",
        run_prefix=session.run_prefix,
        name=getattr(wanted.model, "name", None) or wanted.model_name,
        fields=_fields(wanted),
        schema=report_schema(),
    )
    text += WISHES.format(text=wishes) if wishes else ""
    text += PREVIOUS if wanted.previous else ""
    return text + (AGAIN if again else "")


def _model(wanted: PresetConfiguration) -> str:
    if isinstance(wanted.model, PresetModelBase):
        return f"{wanted.model.base}, or any variant of it, such as a quantized one"
    return f"{wanted.model.repo}, exactly this repository"


def _load(wanted: PresetConfiguration) -> str:
    if wanted.dataset is not None:
        return f"taken from the dataset {wanted.dataset}"
    shared = f", {wanted.shared_prefix_tokens} of them the same in all" if wanted.shared_prefix_tokens else ""
    return f"made up, of {wanted.input_size} tokens each{shared}, with answers of {wanted.output_size} tokens"


def _fields(wanted: PresetConfiguration) -> str:
    """Which the user wants in all services; of variables the agent gets the names, whose values it has itself."""
    names = {*ProfileParams.model_fields, "gateway"}
    fields = wanted.model_dump(mode="json", include=names, exclude_none=True)
    if wanted.env:
        fields["env"] = sorted(wanted.env)
    return yaml.safe_dump(fields, sort_keys=False) if fields else "# none\n"
