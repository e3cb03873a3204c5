"""Between OpenAI's chat completions and the protocol of Text Generation Inference (reference: proxy). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dstack.proxy.openai.errors import ApiError

_REASONS = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class BadAnswer(Exception):
    """The replica's answer is not what TGI answers."""


@dataclass(frozen=True)
class ChatRequest:
    """What of a chat request TGI can be asked for."""

    model: str
    messages: list[dict[str, Any]]
    parameters: dict[str, Any]
    is_streamed: bool
    wants_usage: bool
    """In a stream."""
    tools: list[Any] | None
    """For the chat template."""

    @property
    def stop(self) -> list[str]:
        stop: list[str] = self.parameters["stop"]
        return stop


def read_request(body: Mapping[str, Any], eos_token: str | None) -> ChatRequest:
    """Raises `ApiError` (422) where a field is not what OpenAI's API says."""
    is_streamed = _optional(body, "stream", bool) or False
    options = _optional(body, "stream_options", dict) or {}
    return ChatRequest(
        model=body["model"],
        messages=_messages(body),
        parameters=_parameters(body, eos_token, is_streamed=is_streamed),
        is_streamed=is_streamed,
        wants_usage=bool(options.get("include_usage")),
        tools=_optional(body, "tools", list) or None,
    )


def _optional(body: Mapping[str, Any], name: str, *types: type) -> Any:
    value = body.get(name)
    is_wrong_bool = isinstance(value, bool) and bool not in types
    if value is not None and (is_wrong_bool or not isinstance(value, types)):
        raise ApiError(422, f"`{name}` must be of type {' or '.join(kind.__name__ for kind in types)}")
    return value


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise ApiError(422, "`messages` must be a list of objects with `role` and `content`")
    if not all(isinstance(item.get("role"), str) for item in messages):
        raise ApiError(422, "Each of `messages` must have a `role`")
    return [{**item, "content": _text(item.get("content"))} for item in messages]


def _text(content: Any) -> str:
    """Chat templates take text; that of parts is joined."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise ApiError(422, "The `content` of messages to a model of the format tgi must be text")
    return "".join(part["text"] for part in parts)


def _parameters(body: Mapping[str, Any], eos_token: str | None, *, is_streamed: bool) -> dict[str, Any]:
    stop = _optional(body, "stop", str, list) or []
    stop = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(text, str) for text in stop):
        raise ApiError(422, "`stop` must be a text or a list of texts")
    parameters: dict[str, Any] = {
        "do_sample": True,
        "stop": [*stop, *([eos_token] if eos_token else [])],
        "details": True,
        "decoder_input_details": not is_streamed,
    }
    max_tokens = _optional(body, "max_completion_tokens", int) or _optional(body, "max_tokens", int)
    if max_tokens is not None:
        parameters["max_new_tokens"] = max_tokens
    if (seed := _optional(body, "seed", int)) is not None:
        parameters["seed"] = seed
    temperature = _optional(body, "temperature", int, float)
    if temperature == 0:
        parameters["do_sample"] = False  # TGI refuses the number
    elif temperature is not None:
        parameters["temperature"] = temperature
    top_p = _optional(body, "top_p", int, float)
    if top_p is not None and top_p < 1:
        parameters["top_p"] = top_p
    count = _optional(body, "n", int)
    if count is not None and count > 1:
        parameters["best_of"] = count
    return parameters


def completion(answer: Any, request: ChatRequest, *, id: str, created: int) -> dict[str, Any]:
    """What `/generate` answered, as a chat completion. Raises `BadAnswer`."""
    try:
        details = answer["details"]
        sequences = [
            {**details, "generated_text": answer["generated_text"]},
            *(details.get("best_of_sequences") or []),
        ]
        choices = [_choice(index, sequence, request.stop) for index, sequence in enumerate(sequences)]
        generated = sum(sequence["generated_tokens"] for sequence in sequences)
        usage = _usage(len(details["prefill"]), generated)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadAnswer(f"{type(error).__name__}: {error}") from None
    return {
        "id": id, "object": "chat.completion", "created": created, "model": request.model, "choices": choices,
        "usage": usage, "system_fingerprint": "",
    }  # fmt: skip


def _choice(index: int, sequence: Mapping[str, Any], stop: Sequence[str]) -> dict[str, Any]:
    text = sequence["generated_text"]
    cut = next((one for one in stop if one and text.endswith(one)), "")
    message = {"role": "assistant", "content": text.removesuffix(cut)}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": _reason(sequence)}


def _reason(details: Mapping[str, Any]) -> str:
    return _REASONS.get(details["finish_reason"], "stop")


def _usage(prompt: int, generated: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


@dataclass
class StreamedCompletion:
    """Turns the events of `/generate_stream` into chunks of a chat completion."""

    request: ChatRequest
    id: str
    created: int
    _held: str = ""
    """The end of the text, as long as it may be the beginning of a stop text."""
    _is_begun: bool = field(default=False)
    is_finished: bool = field(default=False)

    def feed(self, event: Any) -> Iterator[dict[str, Any]]:
        """Raises `BadAnswer`."""
        try:
            token, details = event["token"], event.get("details")
            text = "" if token.get("special") else token["text"]
            self._held += text
            yield from self._begin()
            ready = self._take(is_last=details is not None)
            if ready:
                yield self._chunk({"content": ready})
            if details is not None:
                yield from self._end(details)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadAnswer(f"{type(error).__name__}: {error}") from None

    def _begin(self) -> Iterator[dict[str, Any]]:
        if not self._is_begun:
            self._is_begun = True
            yield self._chunk({"role": "assistant", "content": ""})

    def _take(self, *, is_last: bool) -> str:
        """What of the held text is no part of a stop text."""
        stop = [text for text in self.request.stop if text]
        if is_last:
            cut = next((text for text in stop if self._held.endswith(text)), "")
            keep = len(cut)
        else:
            keep = max((_overlap(self._held, text) for text in stop), default=0)
        end = len(self._held) - keep
        ready, self._held = self._held[:end], self._held[end:]
        return ready

    def _end(self, details: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        self.is_finished = True
        yield self._chunk({}, _reason(details))
        if self.request.wants_usage:
            usage = _usage(details.get("input_length") or 0, details["generated_tokens"])
            yield {**self._chunk({}), "choices": [], "usage": usage}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.request.model,
            "choices": [choice], "system_fingerprint": "",
        }  # fmt: skip


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop)), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
