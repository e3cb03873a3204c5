"""The models of a project behind OpenAI's API, asked by the `openai` SDK; replicas are processes of their own."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from tests.integration.proxy.conftest import TOKEN, StaticAuth, StaticRepo, serving

from dstack.core.errors import StoreError
from dstack.proxy.balancing import ByPrefix
from dstack.proxy.deps import ProxyDependencies
from dstack.proxy.openai.app import ModelsApp
from dstack.proxy.openai.upstream import ServiceUpstream
from dstack.proxy.pool import Pool
from dstack.proxy.repo import Model, Service
from dstack.proxy.waking import HoldLimits, Waking

FIXTURES = Path(__file__).parents[2] / "fixtures"
MAX_BODY_BYTES = 1_000_000
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@dataclass
class Models:
    """The API under test, `models` of which can be changed, and its replicas."""

    port: int
    models: dict[str, Model]
    repo: StaticRepo
    replicas: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/proxy/models/main"

    def list_models(self, project: str) -> tuple[Model, ...] | Awaitable[tuple[Model, ...]]:
        if project == "broken":
            raise StoreError("The database does not answer")
        return self._later() if project == "late" else tuple(self.models.values())

    async def _later(self) -> tuple[Model, ...]:
        await asyncio.sleep(0)
        return tuple(self.models.values())

    async def asked(self, replica: str, path: str = "asked") -> list[Any]:
        """What a replica got."""
        async with httpx.AsyncClient(verify=False) as http:
            answer: list[Any] = (await http.get(f"http://{self.replicas[replica]}/{path}")).json()
            return answer


@pytest.fixture(scope="module")
def replicas() -> Iterator[dict[str, str]]:
    """Their addresses."""
    addresses, processes = {}, []
    for name in ("openai", "tgi"):
        command = [sys.executable, str(FIXTURES / f"{name}_server.py"), "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        addresses[name] = f"127.0.0.1:{process.stdout.readline().strip()}"
    yield addresses
    for process in processes:
        with process:  # closes its output, too
            process.terminate()


@pytest.fixture
async def models(replicas: dict[str, str]) -> AsyncIterator[Models]:
    for address in replicas.values():
        async with httpx.AsyncClient(verify=False) as http:
            await http.get(f"http://{address}/forget")
    speaking, generating, gone = (
        Service(name, "main", name, True, True, (address,), is_cors_open=True)
        for name, address in (*replicas.items(), ("gone", "127.0.0.1:1"))
    )
    known = [
        Model("meta/llama", 1_700_000_000, speaking, prefix="/v1"),
        Model("open", 2, replace(speaking, auth=False), prefix="/"),
        Model("tgi", 3, generating, chat_template=TEMPLATE, eos_token="</s>"),
        Model("own-template", 4, generating),
        Model("gone", 5, gone, prefix="/v1"),
    ]
    repo = StaticRepo({})
    waking = Waking(repo, repo.wake, HoldLimits(seconds=0.5, requests=2))
    deps = ProxyDependencies(repo, StaticAuth(), pool=Pool(timeout=5), waking=waking)
    models = Models(0, {model.name: model for model in known}, repo, replicas)
    app = ModelsApp(models, StaticAuth(), ServiceUpstream(deps), max_body_bytes=MAX_BODY_BYTES)
    async with serving(app, deps) as models.port:
        yield models
    await app.close()
    assert deps.pool.busy() == {}
    assert {deps.stats.in_flight(service) for service in deps.stats.services()} <= {0}


@pytest.fixture
async def sdk(models: Models) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=models.url, api_key=TOKEN, max_retries=0, timeout=20) as client:
        yield client


def says(text: str) -> Any:
    return [{"role": "user", "content": text}]


async def ask(sdk: AsyncOpenAI, model: str, text: str, **options: Any) -> Any:
    return await sdk.chat.completions.create(model=model, messages=says(text), **options)


async def test_models_are_listed(sdk: AsyncOpenAI, models: Models) -> None:
    found = [model async for model in sdk.models.list()]
    assert [model.id for model in found] == ["meta/llama", "open", "tgi", "own-template", "gone"]
    first = {"id": "meta/llama", "object": "model", "created": 1_700_000_000, "owned_by": "main"}
    assert found[0].to_dict() == first
    assert (await sdk.models.retrieve("meta/llama")).to_dict() == first
    with pytest.raises(openai.NotFoundError, match="no running model 'none'"):
        await sdk.models.retrieve("none")


async def test_b9_requests_and_answers_pass_as_they_are(sdk: AsyncOpenAI, models: Models) -> None:
    answer = await sdk.chat.completions.create(
        model="meta/llama",
        messages=says("Hello"),
        max_tokens=5,
        logprobs=True,
        reasoning_effort="low",
        extra_body={"of_theirs": [1, None]},
        extra_headers={"X-Session": "s1"},
    )
    assert answer.choices[0].message.content == "One two three"
    assert answer.choices[0].message.model_extra == {"reasoning_content": "Hm."}
    assert answer.model_extra == {"of_this_server": {"kv": 1}}
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    asked = (await models.asked("openai"))[0]
    assert asked["path"] == "/v1/chat/completions"
    assert json.loads(base64.b64decode(asked["body"])) == {
        "model": "meta/llama", "messages": says("Hello"), "max_tokens": 5, "logprobs": True,
        "reasoning_effort": "low", "of_theirs": [1, None],
    }  # fmt: skip
    assert asked["headers"]["x-session"] == "s1"
    assert asked["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert asked["headers"]["x-forwarded-prefix"] == "/proxy/services/main/openai"


async def test_b9_tools_pass(sdk: AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="meta/llama", messages=says("Weather?"), tools=TOOLS)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls is not None
    (call,) = answer.choices[0].message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}


async def test_b9_a_stream_passes_event_by_event(sdk: AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="meta/llama", messages=says("Count"), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert words == [None, "One", " two", " three"]
    assert chunks[0].choices[0].delta.model_extra == {"reasoning_content": "Let me think."}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert stream.response.headers["x-accel-buffering"] == "no"


async def test_b9_other_parts_of_the_api(sdk: AsyncOpenAI, models: Models) -> None:
    assert (await sdk.completions.create(model="meta/llama", prompt="2+2")).choices[0].text == "four"
    embedding = await sdk.embeddings.create(model="meta/llama", input="a", encoding_format="float")
    assert embedding.data[0].embedding == [0.5, 0.25]
    assert (await sdk.responses.create(model="meta/llama", input="a")).output_text == "Hello"
    wave = ("a.wav", b"x" * 1000, "audio/wav")
    heard = await sdk.audio.transcriptions.create(model="meta/llama", file=wave)
    assert heard.text.endswith(" bytes")
    got = await sdk.get("/responses/r1?model=meta/llama&limit=2", cast_to=httpx.Response)
    assert got.json() == {"path": "/v1/responses/r1?model=meta/llama&limit=2"}
    paths = [asked["path"] for asked in await models.asked("openai")]
    assert paths[:4] == ["/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/audio/transcriptions"]


async def test_a_prefix_may_be_the_root_and_the_token_stays_with_the_platform(
    sdk: AsyncOpenAI, models: Models
) -> None:
    """Also where the service has no `auth`, whose `Authorization` passes when it is called directly."""
    await sdk.chat.completions.create(model="open", messages=says("Hello"))
    (asked,) = await models.asked("openai")
    assert asked["path"] == "/chat/completions"
    assert "authorization" not in asked["headers"]


async def test_auth_is_always_needed(sdk: AsyncOpenAI, models: Models) -> None:
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await sdk.with_options(api_key="wrong").chat.completions.create(model="open", messages=says("a"))
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.RateLimitError) as limited:
        await sdk.with_options(api_key="one-too-many").models.list()
    assert limited.value.response.headers["retry-after"] == "7"
    async with httpx.AsyncClient(verify=False) as http:
        answer = await http.get(f"{models.url}/models")
        assert (answer.status_code, set(answer.json())) == (403, {"detail", "error"})
        assert answer.json()["detail"] == answer.json()["error"]["message"]
    assert await models.asked("openai") == []


async def test_what_we_depend_on_may_be_away(sdk: AsyncOpenAI, models: Models) -> None:
    with pytest.raises(openai.InternalServerError, match="database does not answer") as caught:
        await sdk.with_options(base_url=models.url.replace("main", "broken")).models.list()
    assert caught.value.status_code == 503
    late = sdk.with_options(base_url=models.url.replace("main", "late"))
    assert (await late.models.retrieve("tgi")).id == "tgi"


BAD_REQUESTS: list[tuple[str, Any, int, str]] = [
    ("chat/completions", b"{", 422, "not JSON"),
    ("chat/completions", b"[]", 422, "must be a JSON object"),
    ("chat/completions", {"messages": []}, 422, "must name a model"),
    ("chat/completions", {"model": 7}, 422, "must name a model"),
    ("chat/completions", {"model": "none"}, 404, "no running model 'none' in project main"),
    ("chat/completions", {"model": "tgi"}, 422, "`messages`"),
    ("chat/completions", {"model": "tgi", "messages": says("x"), "stop": 7}, 422, "`stop`"),
    ("chat/completions", {"model": "tgi", "messages": [{"content": "x"}]}, 422, "`role`"),
    ("completions", {"model": "tgi", "prompt": "x"}, 404, "chat/completions only"),
    ("chat/completions", {"model": "meta/llama", "messages": "x" * MAX_BODY_BYTES}, 413, "larger than"),
    ("models", {}, 405, "GET"),
]


@pytest.mark.parametrize(("path", "body", "status", "text"), BAD_REQUESTS)
async def test_bad_requests(models: Models, path: str, body: Any, status: int, text: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(verify=False, headers=headers) as http:
        answer = await http.post(f"{models.url}/{path}", content=content)
    assert (answer.status_code, text in answer.json()["detail"]) == (status, True), answer.text
    assert answer.json()["error"]["message"] == answer.json()["detail"]


async def test_errors_of_the_replica_keep_their_status_and_body(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        await sdk.chat.completions.create(model="meta/llama", messages=says("fail 429"))
    body: Any = caught.value.response.json()
    assert body["error"] == {"message": "fail 429", "type": "theirs"}
    assert (body["more"], json.loads(body["detail"])["more"]) == (1, 1)
    assert caught.value.response.headers["x-request-id"] == "req-1"
    with pytest.raises(openai.InternalServerError) as plain:
        await sdk.chat.completions.create(model="meta/llama", messages=says("fail-plainly"), stream=True)
    assert plain.value.status_code == 503
    assert plain.value.response.json()["detail"] == "out of memory"
    assert plain.value.response.json()["error"]["message"] == "out of memory"


@pytest.mark.parametrize("model", ["gone", "meta/llama"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_replica_that_fails_before_its_first_chunk_is_an_error_with_a_status(
    sdk: AsyncOpenAI, model: str, stream: bool
) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(sdk, model, "die early", stream=stream)
    assert caught.value.status_code == 502


async def test_a_replica_that_fails_later_ends_the_stream_with_an_error(sdk: AsyncOpenAI, models: Models) -> None:
    stream = await sdk.chat.completions.create(model="meta/llama", messages=says("die late"), stream=True)
    with pytest.raises(openai.APIError, match="went away in the middle"):
        [chunk async for chunk in stream]
    async with httpx.AsyncClient(verify=False, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        body = {"model": "meta/llama", "messages": says("die late"), "stream": True}
        text = ""
        async with http.stream("POST", f"{models.url}/chat/completions", json=body) as answer:
            pieces = answer.aiter_text()
            while "\n: The model failed" not in text:
                text += await anext(pieces)
            with pytest.raises(httpx.RemoteProtocolError):  # better B4: half an answer does not look whole
                await anext(pieces)


async def test_a_client_that_leaves_ends_the_request_of_the_replica(sdk: AsyncOpenAI, models: Models) -> None:
    stream = await sdk.chat.completions.create(model="meta/llama", messages=says("endless"), stream=True)
    assert (await anext(aiter(stream))).choices
    await stream.close()
    while not await models.asked("openai", "left"):  # noqa: ASYNC110 # the replica has no event for it
        await asyncio.sleep(0.02)


async def test_a_reader_that_is_slow_slows_the_replica(models: Models) -> None:
    """Nothing piles up here: what the client does not read, the replica can't send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", models.port, limit=1024)
    body = json.dumps({"model": "meta/llama", "messages": says("flood"), "stream": True}).encode()
    lines = (f"Authorization: Bearer {TOKEN}", "Content-Type: application/json", f"Content-Length: {len(body)}")
    head = "\r\n".join(("POST /proxy/models/main/chat/completions HTTP/1.1", "Host: x", *lines, "", ""))
    writer.write(head.encode() + body)
    assert b" 200 " in await reader.readline()
    before, sent = [-1], await models.asked("openai", "sent")
    while before != sent:
        await asyncio.sleep(0.3)
        before, sent = sent, await models.asked("openai", "sent")
    assert 0 < sent[0] < 50_000_000, "what the sockets hold"
    writer.close()
    await writer.wait_closed()


async def test_replicas_are_balanced_as_the_service_says(sdk: AsyncOpenAI, models: Models) -> None:
    """Also by the prompt's beginning, and around a replica that is away."""
    llama = models.models["meta/llama"]
    addresses = ("127.0.0.1:1", models.replicas["openai"])
    service = replace(llama.service, replicas=addresses, balancing=ByPrefix(100, 1.25))
    models.models["meta/llama"] = replace(llama, service=service)
    for number in range(8):
        assert (await ask(sdk, "meta/llama", f"prompt {number}")).choices
    assert len(await models.asked("openai")) == 8


async def test_a_sleeping_model_is_woken(sdk: AsyncOpenAI, models: Models) -> None:
    asleep = Service("sleepy", "main", "sleepy", True, True, (), wakes=True)
    models.repo.services["main", "sleepy"] = asleep
    models.models["sleepy"] = Model("sleepy", 1, asleep, prefix="/v1")
    with pytest.raises(openai.InternalServerError) as caught:
        await sdk.chat.completions.create(model="sleepy", messages=says("a"))
    assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "10")
    models.repo.waker = (models.replicas["openai"],)
    assert (await sdk.chat.completions.create(model="sleepy", messages=says("a"))).choices
    assert set(models.repo.woken) == {"sleepy"}


async def test_browsers_of_any_site_may_use_it(models: Models) -> None:
    async with httpx.AsyncClient(verify=False) as http:
        preflight = await http.options(f"{models.url}/chat/completions")
        assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (204, "*")
        refused = await http.get(f"{models.url}/models")
        assert refused.headers["access-control-allow-origin"] == "*"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        body = {"model": "meta/llama", "messages": says("a")}
        answer = await http.post(f"{models.url}/chat/completions", json=body, headers=headers)
        assert answer.headers.get_list("access-control-allow-origin") == ["*"]


# Text Generation Inference


async def test_tgi_is_asked_and_answers_in_openais_form(sdk: AsyncOpenAI, models: Models) -> None:
    answer = await sdk.chat.completions.create(
        model="tgi",
        messages=[
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
        max_tokens=50,
        temperature=0.5,
        top_p=1,
        seed=4,
        stop=[" END"],
    )
    assert (answer.object, answer.model) == ("chat.completion", "tgi")
    assert answer.choices[0].message.content == "One, two, three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 6, 11)
    (asked,) = await models.asked("tgi")
    assert asked == {
        "path": "/generate",
        "authorization": None,
        "inputs": "<|system|>Be brief</s><|user|>Hi</s><|assistant|>",
        "parameters": {
            "do_sample": True, "max_new_tokens": 50, "stop": [" END", "</s>"], "seed": 4, "temperature": 0.5,
            "details": True, "decoder_input_details": True,
        },
    }  # fmt: skip


async def test_tgi_streams_without_the_stop_text(sdk: AsyncOpenAI, models: Models) -> None:
    async def stream(**options: Any) -> list[Any]:
        return [chunk async for chunk in await ask(sdk, "tgi", "Hi", stream=True, **options)]

    chunks = await stream(stop=", three END", stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "One, two"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (9, 6)
    whole = await stream()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in whole) == "One, two, three END four"
    short = await stream(max_tokens=3)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in short) == "One, two"
    assert short[-1].choices[0].finish_reason == "length"
    assert not (await models.asked("tgi"))[0]["parameters"]["decoder_input_details"]


async def test_tgi_gives_several_choices(sdk: AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="tgi", messages=says("Hi"), n=2, max_tokens=1)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "One"), (1, "ONE")]


async def test_tgi_renders_its_own_template_where_none_is_given(sdk: AsyncOpenAI, models: Models) -> None:
    answer = await sdk.chat.completions.create(model="own-template", messages=says("Hi"))
    assert answer.choices[0].message.content == "One, two, three END four"
    templated, generated = await models.asked("tgi")
    assert (templated["path"], generated["inputs"]) == ("/chat_tokenize", "<user>Hi<assistant>")
    assert generated["parameters"]["stop"] == []


FAILURES: list[tuple[str, bool, int, str]] = [
    ("fail", False, 422, "`inputs` is wrong"),
    ("fail", True, 422, "`inputs` is wrong"),
    ("nonsense", False, 502, "can't be read"),
    ("nonsense", True, 502, ""),
]


@pytest.mark.parametrize(("text", "is_streamed", "status", "reason"), FAILURES)
async def test_tgi_errors(sdk: AsyncOpenAI, text: str, is_streamed: bool, status: int, reason: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(sdk, "tgi", text, stream=is_streamed)
    assert (caught.value.status_code, reason in caught.value.message) == (status, True)
    assert "detail" in caught.value.response.json()


async def test_tgi_fails_within_a_stream(sdk: AsyncOpenAI) -> None:
    stream = aiter(await ask(sdk, "tgi", "break", stream=True))
    words = [(await anext(stream)).choices[0].delta.content for _ in range(3)]
    assert words == ["", "One", ","]
    with pytest.raises(openai.APIError, match="CUDA out of memory"):
        await anext(stream)


BAD_TEMPLATES: list[tuple[str, int, str]] = [
    ("{{ raise_exception('Roles must alternate') }}", 400, "Roles must alternate"),
    ("{% for %}", 500, "TemplateSyntaxError"),
    ("{{ messages.nothing.more }}", 500, "UndefinedError"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 500, "SecurityError"),
    ("{% set _ = messages.append(1) %}", 500, "SecurityError"),
    ("{{ 'x' * 1000000000 }}", 500, "memory"),
    ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", 500, "longer than"),
    ("{% include '/etc/passwd' %}", 500, "TypeError"),
]


@pytest.mark.parametrize(("template", "status", "text"), BAD_TEMPLATES)
async def test_templates_are_not_trusted(
    sdk: AsyncOpenAI, models: Models, template: str, status: int, text: str
) -> None:
    models.models["bad"] = replace(models.models["tgi"], name="bad", chat_template=template)
    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.chat.completions.create(model="bad", messages=says("Hi"))
    assert (caught.value.status_code, text in caught.value.message) == (status, True), caught.value.message
    assert (await sdk.chat.completions.create(model="tgi", messages=says("Hi"))).choices


async def test_a_template_that_takes_forever_is_ended(
    sdk: AsyncOpenAI, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dstack.proxy.openai.rendering.MAX_SECONDS", 1.0)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    models.models["slow"] = replace(models.models["tgi"], name="slow", chat_template=loops)
    with pytest.raises(openai.InternalServerError, match="took longer than"):
        await sdk.chat.completions.create(model="slow", messages=says("Hi"))
