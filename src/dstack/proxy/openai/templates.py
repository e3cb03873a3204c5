"""Chat templates in a sandbox, as a process of its own: little memory, no environment, ended when it is slow.

Templates come from the configurations of users, so they are not trusted. They see what templates of published
models expect: `messages`, `tools`, `add_generation_prompt`, `bos_token`, `eos_token`, `raise_exception`,
`strftime_now`, the filter `tojson`.

`python -m dstack.proxy.openai.templates` reads a line of JSON for each prompt, and writes one; `rendering` starts
it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_PROMPT_CHARS = 4 * 1024 * 1024
MAX_MEMORY_BYTES = 512 * 1024 * 1024
KEPT_TEMPLATES = 64


class BadTemplate(Exception):
    """The template itself is wrong, or wants too much."""


class RefusedByTemplate(Exception):
    """The template does not take these messages (its `raise_exception`); the text is its own."""


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The prompt. Raises `BadTemplate` or `RefusedByTemplate`."""
    try:
        return _collect(_compile(template), variables)
    except RefusedByTemplate:
        raise
    except MemoryError:
        raise BadTemplate("it needs too much memory") from None
    except Exception as error:  # noqa: BLE001 - whatever the code of a stranger does wrong
        raise BadTemplate(f"{type(error).__name__}: {error}") from None


def _collect(template: Template, variables: Mapping[str, Any]) -> str:
    pieces, length = [], 0
    for piece in template.generate(add_generation_prompt=True, **variables):
        length += len(piece)
        if length > MAX_PROMPT_CHARS:
            raise TemplateError(f"the prompt is longer than {MAX_PROMPT_CHARS} characters")
        pieces.append(piece)
    return "".join(pieces)


@lru_cache(maxsize=KEPT_TEMPLATES)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals.update(raise_exception=_refuse, strftime_now=_now_as)
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def _refuse(text: object) -> None:
    raise RefusedByTemplate(str(text))


def _now_as(format: str) -> str:
    return datetime.now().astimezone().strftime(format)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Unlike Jinja's own it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _answer(line: str) -> dict[str, str]:
    asked = json.loads(line)
    try:
        return {"prompt": render(asked["template"], asked["variables"])}
    except RefusedByTemplate as error:
        return {"refused": str(error)}
    except BadTemplate as error:
        return {"bad": str(error)}


def main() -> None:
    """Until standard input ends."""
    if sys.platform == "linux":
        import resource  # noqa: PLC0415 - not everywhere; other systems don't limit memory this way

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
