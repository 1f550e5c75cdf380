"""Calls of tools are told from the text of an answer, however it comes in pieces."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.huggingface.generation.tools import Pieces, ToolReader, response_template_of

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
]
TAGGED = response_template_of(SimpleNamespace(chat_template="… <tool_call> …"))
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": "3"}}</tool_call>'


def read(text: str, sizes: list[int]) -> Pieces:
    assert TAGGED is not None
    reader, whole, at = ToolReader(TAGGED, TOOLS), Pieces(), 0
    for size in [*sizes, len(text)]:
        pieces = reader.feed(text[at : at + size])
        whole.text += pieces.text
        whole.tool_calls += pieces.tool_calls
        at += size
    pieces = reader.finish()
    whole.text += pieces.text
    whole.tool_calls += pieces.tool_calls
    return whole


sizes = st.lists(st.integers(1, 9), max_size=60)


@given(sizes=sizes)
def test_text_and_calls_are_told_apart(sizes: list[int]) -> None:
    found = read(f"Let me see.\n{CALL}\n{CALL} Done.", sizes)

    assert found.text == "Let me see. Done."
    assert [call["index"] for call in found.tool_calls] == [0, 1]
    assert len({call["id"] for call in found.tool_calls}) == 2
    for call in found.tool_calls:
        assert call["type"] == "function"
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Köln", "days": 3}


@pytest.mark.parametrize(
    "text",
    [
        "Hello there.",
        " \n",
        "a <tool_c b",
        "a <tool_call>{bad json</tool_call> b",
        'a <tool_call>{"name": "wea',
        "<tool_call>[1]</tool_call>x",
        '<tool_call>{"x": 1}</tool_call>x',
        "a < b and c > d",
    ],
)
@given(sizes=sizes)
def test_what_is_no_whole_call_is_text(text: str, sizes: list[int]) -> None:
    assert read(text, sizes) == Pieces(text)


@given(text=st.text('<tool_call>/{}":ab ', max_size=60), sizes=sizes)
def test_nothing_raises_whatever_a_model_writes(text: str, sizes: list[int]) -> None:
    read(text, sizes)


def test_what_the_prompt_ends_with_is_no_part_of_the_answer() -> None:
    assert TAGGED is not None
    reader = ToolReader(TAGGED, TOOLS, "<|im_start|>assistant\n\n")

    assert reader.told(f"Well.{CALL}", "stop")[0] == "Well."


def test_an_answer_with_calls_ends_for_their_sake() -> None:
    assert TAGGED is not None

    assert ToolReader(TAGGED, TOOLS).told(CALL, "stop")[2] == "tool_calls"
    assert ToolReader(TAGGED, TOOLS).told(CALL, "length")[2] == "length"
    assert ToolReader(TAGGED, TOOLS).told("text", "stop")[2] == "stop"


def test_a_tokenizer_that_says_how_calls_are_written_is_believed() -> None:
    template: dict[str, Any] = {"fields": {}}

    assert response_template_of(SimpleNamespace(response_template=template)) is template
    assert response_template_of(SimpleNamespace(chat_template="plain")) is None
