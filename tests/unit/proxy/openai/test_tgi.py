"""Text of TGI, whole and in pieces."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.proxy.openai.errors import ApiError
from dstack.proxy.openai.events import MAX_EVENT_BYTES, EventReader, EventTooLarge, event
from dstack.proxy.openai.tgi import BadAnswer, StreamedCompletion, completion, read_request

SHORT = st.text(alphabet="ab", max_size=4)


def request(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}


PARAMETERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"max_tokens": 4}, {"max_new_tokens": 4}),
    ({"max_tokens": 4, "max_completion_tokens": 5}, {"max_new_tokens": 5}),
    ({"temperature": 0.3, "seed": 0}, {"temperature": 0.3, "seed": 0}),
    ({"temperature": 0}, {"do_sample": False}),
    ({"top_p": 1.0}, {}),
    ({"top_p": 0.9}, {"top_p": 0.9}),
    ({"n": 1}, {}),
    ({"n": 3}, {"best_of": 3}),
    ({"stop": "a"}, {"stop": ["a", "</s>"]}),
    ({"stop": ["a", "b"]}, {"stop": ["a", "b", "</s>"]}),
    ({"stream": True}, {"decoder_input_details": False}),
    ({"user": "u", "logit_bias": {}, "unknown": 1}, {}),
]


@pytest.mark.parametrize(("fields", "changes"), PARAMETERS)
def test_parameters(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    usual = {"do_sample": True, "stop": ["</s>"], "details": True, "decoder_input_details": True}
    assert read_request(request(**fields), "</s>").parameters == {**usual, **changes}


WRONG: list[dict[str, Any]] = [
    {"messages": []},
    {"messages": "Hi"},
    {"messages": [{"content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    {"max_tokens": "many"},
    {"max_tokens": True},
    {"stream": 1},
    {"stop": [1]},
    {"n": 1.5},
]


@pytest.mark.parametrize("fields", WRONG)
def test_wrong_requests(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        read_request(request(**fields), None)
    assert caught.value.status == 422


def streamed(words: list[str], stop: list[str], reason: str) -> str:
    """The text of all chunks."""
    asked = read_request(request(stop=stop), None)
    streaming = StreamedCompletion(asked, "id", 1)
    text = ""
    for number, word in enumerate(words, 1):
        details = {"finish_reason": reason, "generated_tokens": number} if number == len(words) else None
        for chunk in streaming.feed({"token": {"text": word, "special": False}, "details": details}):
            text += chunk["choices"][0]["delta"].get("content", "")
    assert streaming.is_finished
    return text


@given(words=st.lists(SHORT, min_size=1, max_size=8), stop=st.lists(SHORT, max_size=3))
def test_a_stream_says_what_the_whole_answer_says(words: list[str], stop: list[str]) -> None:
    details = {"finish_reason": "stop_sequence", "generated_tokens": len(words), "prefill": []}
    answer = {"generated_text": "".join(words), "details": details}
    whole = completion(answer, read_request(request(stop=stop), None), id="id", created=1)
    assert streamed(words, stop, "stop_sequence") == whole["choices"][0]["message"]["content"]


def test_what_is_no_answer_of_tgi() -> None:
    asked = read_request(request(), None)
    answers: list[Any] = [None, [], {}, {"generated_text": "x"}, {"generated_text": "x", "details": {}}]
    for answer in answers:
        with pytest.raises(BadAnswer):
            completion(answer, asked, id="id", created=1)
        with pytest.raises(BadAnswer):
            list(StreamedCompletion(asked, "id", 1).feed(answer))


@given(data=st.lists(st.dictionaries(st.text(), st.text()), max_size=5), cut=st.integers(1, 7))
def test_events_are_read_however_they_arrive(data: list[dict[str, str]], cut: int) -> None:
    sent = b": comment\r\n\r\n" + b"".join(event(item) for item in data)
    reader = EventReader()
    read = [got for start in range(0, len(sent), cut) for got in reader.feed(sent[start : start + cut])]
    assert [orjson.loads(got) for got in read] == data


def test_events_without_end_are_refused() -> None:
    reader = EventReader()
    reader.feed(b"data:" + b"x" * (MAX_EVENT_BYTES - 5))
    with pytest.raises(EventTooLarge):
        reader.feed(b"x")
    lines = EventReader()
    with pytest.raises(EventTooLarge):
        lines.feed(b"data:x\n" * (MAX_EVENT_BYTES + 1))
