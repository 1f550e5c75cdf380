"""Texts that go on, with the real client."""

from typing import Any

import openai
import pytest
from tests.protocols.openai.parrot import Heard

pytestmark = pytest.mark.slow


def test_a_prompt_is_gone_on_with(client: openai.OpenAI, heard: Heard) -> None:
    answer = client.completions.create(model="parrot", prompt="one two", echo=True)

    assert answer.id.startswith("cmpl-")
    assert (answer.object, answer.choices[0].text) == ("text_completion", "one two")
    assert answer.choices[0].finish_reason == "stop"
    assert heard.requests[0].max_tokens == 16
    assert heard.requests[0].echo


def test_choices_of_several_prompts_are_numbered_on(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="parrot", prompt=["one", "two three"], n=2)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["one", "one", "two three", "two three"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("prompt", "texts"), [([7, 8], ["ids [7, 8]"]), ([[7], [8]], ["ids [7]", "ids [8]"])]
)
def test_prompts_may_be_ids_of_tokens(client: openai.OpenAI, prompt: Any, texts: list[str]) -> None:
    answer = client.completions.create(model="parrot", prompt=prompt)

    assert [choice.text for choice in answer.choices] == texts


@pytest.mark.parametrize("prompts", [["a b"], ["a b", "c", "d e f"]])
def test_streams_of_all_prompts_are_one(client: openai.OpenAI, prompts: list[str]) -> None:
    stream = client.completions.create(
        model="parrot", prompt=prompts, stream=True, n=2, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    texts: dict[int, str] = {}
    for choice in choices:
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    wanted = [f"{prompt} " for prompt in prompts for _ in range(2)]
    assert texts == dict(enumerate(wanted))
    ends = [choice.index for choice in choices if choice.finish_reason == "stop"]
    assert sorted(ends) == list(range(len(wanted)))
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens == sum(len(prompt.split()) for prompt in prompts)


def test_the_likelihoods_of_tokens_say_where_they_stand(client: openai.OpenAI) -> None:
    options: Any = {"model": "parrot", "prompt": "one two", "logprobs": 1}
    whole = client.completions.create(**options).choices[0].logprobs
    pieces = [
        piece
        for chunk in client.completions.create(stream=True, **options)
        if (piece := chunk.choices[0].logprobs) is not None
    ]

    assert whole is not None
    assert whole.tokens == ["one", "two"]
    assert whole.token_logprobs == [-0.5, -0.5]
    assert whole.top_logprobs == [{"one": -0.5}, {"two": -0.5}]
    assert whole.text_offset == [0, 3]
    assert [piece.text_offset for piece in pieces] == [[0], [4]]
