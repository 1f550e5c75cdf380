"""The pure parts: what is asked, chunks and their order, vectors, the shape of errors."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from mlserve import InvalidInputError, ModelOutputError, UnsupportedParameterError
from mlserve.http.errors import Failure
from mlserve.protocols.openai.answers import Head, embeddings_answer, to_json
from mlserve.protocols.openai.chunks import ChatWriter, CompletionWriter, Writer
from mlserve.protocols.openai.errors import openai_shape
from mlserve.protocols.openai.parameters import require_served
from mlserve.protocols.openai.requests import ChatRequest, CompletionRequest
from mlserve.protocols.openai.translation import payloads_of
from mlserve.tasks.embedding import Embedding
from mlserve.tasks.generation import GenerationChunk, GenerationRequest, TokenLogprob, Usage

MESSAGES = [{"role": "user", "content": "hi"}]
ADAPTER: TypeAdapter[Any] = TypeAdapter(GenerationRequest)
HEAD = Head("id", 0, "m", n=2)


def written(writer: Writer, chunks: list[GenerationChunk]) -> list[dict[str, Any]]:
    events = [event for chunk in chunks for event in writer.chunk(0, chunk)] + writer.end()
    return [json.loads(event) for event in events]


pieces = st.lists(
    st.builds(
        GenerationChunk,
        index=st.sampled_from([0, 1]),
        text=st.text(max_size=3),
        finish_reason=st.none(),
    ),
    max_size=8,
)


@given(pieces, st.booleans())
def test_whatever_a_model_says_each_choice_begins_and_ends_once(
    chunks: list[GenerationChunk], says_why: bool
) -> None:
    ends = [GenerationChunk(index=i, finish_reason="length") for i in (0, 1) if says_why]
    events = written(ChatWriter(HEAD, includes_usage=True), [*chunks, *ends])

    *events, last = events
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 0)
    for index in (0, 1):
        choices = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["delta"] == {}
        assert choices[-1]["finish_reason"] == ("length" if says_why else "stop")
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert text == "".join(chunk.text for chunk in chunks if chunk.index == index)


@given(pieces)
def test_no_piece_of_a_text_is_lost(chunks: list[GenerationChunk]) -> None:
    events = written(CompletionWriter(HEAD, 1, includes_usage=False), chunks)

    for index in (0, 1):
        texts = [e["choices"][0]["text"] for e in events if e["choices"][0]["index"] == index]
        assert "".join(texts) == "".join(c.text for c in chunks if c.index == index)
    assert all("usage" not in event for event in events)


def test_what_the_model_took_is_added_up_over_prompts() -> None:
    writer = CompletionWriter(HEAD, 2, includes_usage=True)
    usage = Usage(prompt_tokens=2, completion_tokens=3, cached_tokens=1)
    for prompt in (0, 1):
        writer.chunk(prompt, GenerationChunk(index=1, finish_reason="stop", usage=usage))

    last = json.loads(writer.end()[-1])
    assert last["usage"]["prompt_tokens"] == 4
    assert last["usage"]["total_tokens"] == 10
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


def test_what_is_impossible_is_a_number_and_what_is_none_an_error() -> None:
    token = TokenLogprob.model_validate({"token": "a", "logprob": -math.inf, "bytes": [97]})
    [_, event] = ChatWriter(HEAD, includes_usage=False).chunk(0, GenerationChunk(logprobs=[token]))

    assert json.loads(event)["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0
    for value in (math.nan, "\ud800"):
        with pytest.raises(ModelOutputError):
            to_json(value)


def test_the_smallest_numbers_are_a_vector_too() -> None:
    embeddings = [Embedding(embedding=[5e-324, 5e-324, 0.0], tokens=1)]

    [item] = embeddings_answer("m", embeddings, dimensions=2, is_base64=False)["data"]

    assert item["embedding"] == pytest.approx([0.5**0.5, 0.5**0.5])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.data())
def test_shortened_vectors_have_length_one(vector: list[float], data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, len(vector)))
    embeddings = [Embedding(embedding=vector, tokens=1)]
    answer = embeddings_answer("m", embeddings, dimensions=dimensions, is_base64=False)

    [kept] = [item["embedding"] for item in answer["data"]]
    assert isinstance(kept, list)
    assert len(kept) == dimensions
    if dimensions < len(vector) and any(vector[:dimensions]):
        assert math.hypot(*kept) == pytest.approx(1)


@pytest.mark.parametrize("vector", [[math.nan], [1e300]])
def test_vectors_that_no_float32_holds_are_the_models_fault(vector: list[float]) -> None:
    embeddings = [Embedding(embedding=vector, tokens=1)]
    with pytest.raises(ModelOutputError):
        embeddings_answer("m", embeddings, dimensions=None, is_base64=True)


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "a"},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"service_tier": "auto"},
        {"safety_identifier": "a"},
        {"prompt_cache_key": "a"},
        {"parallel_tool_calls": True},
        {"modalities": ["text"]},
        {"audio": None},
    ],
)
def test_what_does_no_harm_is_taken(harmless: dict[str, Any]) -> None:
    asked = ChatRequest.model_validate({"model": "m", "messages": MESSAGES, **harmless})

    require_served(asked)
    assert payloads_of(asked, ADAPTER)[0].messages[0].content == "hi"


@pytest.mark.parametrize("asked", [{"best_of": 3}, {"suffix": "end"}, {"use_beam_search": True}])
def test_what_would_change_a_text_is_refused(asked: dict[str, Any]) -> None:
    request = CompletionRequest.model_validate({"model": "m", "prompt": "a", **asked})
    with pytest.raises(UnsupportedParameterError) as caught:
        require_served(request)

    assert caught.value.param == next(iter(asked))


def test_best_of_as_many_as_are_given_is_no_choice() -> None:
    asked = {"model": "m", "prompt": "a", "n": 2, "best_of": 2, "suffix": ""}

    require_served(CompletionRequest.model_validate(asked))


def test_too_many_dimensions_are_named() -> None:
    embeddings = [Embedding(embedding=[1.0], tokens=1)]
    with pytest.raises(InvalidInputError, match="at most 1"):
        embeddings_answer("m", embeddings, dimensions=2, is_base64=False)


@pytest.mark.parametrize(
    ("status", "retry_after_s", "is_repeated"),
    [
        (400, None, False),
        (404, None, False),
        (408, None, True),
        (422, None, False),
        (429, None, True),
        (500, None, False),
        (502, 1.0, False),
        (503, 1.0, True),
        (504, None, True),
        (507, None, False),
        (507, 1.0, True),
    ],
)
def test_the_client_is_told_what_not_to_repeat(
    status: int, retry_after_s: float | None, is_repeated: bool
) -> None:
    failure = openai_shape(Failure(status, "code", "Kind", "message", retry_after_s))

    assert failure.headers.get("x-should-retry") == (None if is_repeated else "false")
    assert failure.status == (400 if status == 422 else status)
