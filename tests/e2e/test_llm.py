"""The language model of the examples: a real one, behind the server's proxy, talked to with the `openai` SDK."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from tests.e2e.harness import ROOT, TOKEN, Cli, wait_for

EXAMPLE = ROOT / "examples/llm"
INSTALLED = ROOT / ".cache/llm"
"""Packages and weights, kept from one test run to the next."""
MODEL = "gemma-3-270m"
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Count to ten."}]
OF_PIP = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def variables_of_the_job() -> Iterator[str]:
    """Flags of `dstack apply`: this machine's way to its package index, and where what it gives is kept."""
    home = Path.home()
    given = {name: value for name, value in os.environ.items() if name.startswith(OF_PIP)}
    given.setdefault("PIP_CACHE_DIR", str(home / ".cache/pip"))
    for file in (home / ".config/pip/pip.conf", home / ".pip/pip.conf"):
        if file.exists():
            given.setdefault("PIP_CONFIG_FILE", str(file))
    for name, value in {**given, "LLM_HOME": str(INSTALLED)}.items():
        yield from ("-e", f"{name}={value}")


@pytest.fixture
def client(cli: Cli, free_port: int) -> Iterator[OpenAI]:
    """Of the example, applied and ready, on a port of its own."""
    shutil.copytree(EXAMPLE, cli.folder, dirs_exist_ok=True)
    configuration = (EXAMPLE / "service.dstack.yml").read_text().replace("8000", str(free_port))
    cli.write(configuration)
    status, out = cli("apply", "-y", "-d", *variables_of_the_job())
    assert status == 0, out
    wait_for("the model", lambda: is_ready(cli), 240)
    url = f"{cli.server.url}/proxy/models/main"
    with OpenAI(base_url=url, api_key=TOKEN, max_retries=0, timeout=100) as client:
        yield client


def is_ready(cli: Cli) -> bool:
    status = cli.server.run("llm")["status"]
    assert status not in ("failed", "done", "terminated"), cli("logs", "llm")
    return bool(cli.server.call("GET", "/proxy/services/main/llm/v1/models"))


@pytest.mark.timeout(300)
def test_a_real_model_answers_whole_and_in_a_stream_and_errors_reach_the_sdk(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8, temperature=0)
    choice = whole.choices[0]
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8

    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    words = [
        chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content
    ]
    assert "".join(words) == choice.message.content
    assert len(words) > 2  # several events, not one with everything
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4).choices[0].text

    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model=MODEL, messages="not a list", max_tokens=1)  # type: ignore[arg-type]
    with pytest.raises(openai.PermissionDeniedError):
        client.with_options(api_key="no-such-token").models.list()
    direct = client.with_options(base_url=str(client.base_url).replace("models/main", "services/main/llm/v1"))
    assert MODEL in [model.id for model in direct.models.list()]
