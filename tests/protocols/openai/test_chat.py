"""Conversations with the real client."""

from typing import Any

import openai
import pytest
from tests.protocols.openai.parrot import Heard

from mlserve.tasks.generation import Message

pytestmark = pytest.mark.slow

HELLO: list[Any] = [{"role": "user", "content": "hello dear parrot"}]


def test_the_client_reads_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="parrot", messages=HELLO)

    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", "parrot")
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == "hello dear parrot"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == 6
    assert answer._request_id


def test_the_chunks_come_in_the_order_of_openai(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="parrot", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.content for delta in deltas[1:]] == ["hello ", "dear ", "parrot ", None]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * 4 + ["stop"]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * 5
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_without_being_asked_no_chunk_says_what_it_took(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="parrot", messages=HELLO, stream=True))

    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_the_clients_own_helper_puts_the_stream_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="parrot", messages=HELLO, n=2) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()

    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert [choice.message.content for choice in answer.choices] == ["hello dear parrot "] * 2


def test_options_reach_the_model_by_the_names_of_the_task(
    client: openai.OpenAI, heard: Heard
) -> None:
    client.chat.completions.create(
        model="parrot",
        messages=HELLO,
        max_completion_tokens=2,
        temperature=0.5,
        top_p=0.9,
        stop="x",
        seed=3,
        n=2,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"5": -1},
        logprobs=True,
        top_logprobs=2,
        user="somebody",
        store=False,
        metadata={"a": "b"},
        parallel_tool_calls=True,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}},
        },
        extra_body={"top_k": 7, "min_p": 0.05, "repetition_penalty": 1.1},
    )

    [request] = heard.requests
    options = request.model_dump(
        exclude_defaults=True, exclude={"messages", "response_format"}, mode="json"
    )
    assert options == {
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.05,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -1.0},
        "seed": 3,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ["x"],
    }
    assert request.response_format.json_schema == {"type": "object"}


def test_the_likelihoods_of_tokens_are_read(client: openai.OpenAI) -> None:
    options: Any = {"model": "parrot", "messages": HELLO, "logprobs": True, "top_logprobs": 1}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(stream=True, **options))

    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.token for token in logprobs.content] == ["hello", "dear", "parrot"]
    assert logprobs.content[0].top_logprobs[0].logprob == -0.5
    tokens = [
        token.token
        for chunk in chunks
        if (piece := chunk.choices[0].logprobs) is not None
        for token in piece.content or []
    ]
    assert tokens == ["hello", "dear", "parrot"]


def test_parts_of_text_are_joined_and_developers_are_the_system(
    client: openai.OpenAI, heard: Heard
) -> None:
    parts: Any = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": "so", "refusal": None, "annotations": []},
        {"role": "user", "content": parts, "name": "ann"},
    ]
    client.chat.completions.create(model="parrot", messages=messages)

    assert heard.requests[0].messages == [
        Message(role="system", content="Be brief."),
        Message(role="assistant", content="so"),
        Message(role="user", content="one\ntwo", name="ann"),
    ]


def test_tools_are_offered_and_calls_come_back(client: openai.OpenAI, heard: Heard) -> None:
    tools: Any = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    asked: Any = {"model": "parrot", "messages": HELLO, "tools": tools}
    answer = client.chat.completions.create(**asked)
    silent = client.chat.completions.create(tool_choice="none", **asked)

    message = answer.choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    assert message.tool_calls[0].type == "function"
    assert message.tool_calls[0].function.name == "now"
    assert answer.choices[0].finish_reason == "tool_calls"
    assert heard.requests[0].tools == tools
    assert silent.choices[0].message.tool_calls is None
