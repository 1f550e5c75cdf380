"""Text generation through a server: over HTTP, and with what it refuses."""

import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.huggingface.generation.tiny_decoders import (
    N_VOCAB,
    generated,
    save_tiny,
    tiny_decoder,
    tiny_tokenizer,
)

from mlserve import ConfigurationError, Context, ModelServer
from mlserve.huggingface import TextGeneration
from mlserve.huggingface.generation.engine import Engine
from mlserve.huggingface.generation.sequential import SequentialMemory
from mlserve.testing import running

PREDICT = "/v1/models/chat/predict"
STREAM = "/v1/models/chat/stream"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx2.Client]:
    handler = partial(TextGeneration, folder, slots=4, max_length=128)
    with running(ModelServer().add("chat", handler)) as client:
        yield client


def answer(client: httpx2.Client, **request: Any) -> dict[str, Any]:
    response = client.post(PREDICT, json={"temperature": 0, "ignore_eos": True, **request})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def greedy_text(prompt: str, n: int) -> str:
    tokenizer = tiny_tokenizer()
    tokens = generated(tiny_decoder("llama"), tokenizer(prompt)["input_ids"], n)
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


@pytest.mark.parametrize("prompt", ["Once upon a time", "🙂 and 日本語", "x" * 90])
def test_a_prompt_is_gone_on_with_as_generate_does(client: httpx2.Client, prompt: str) -> None:
    found = answer(client, prompt=prompt, max_tokens=20)

    assert found["choices"][0]["text"] == greedy_text(prompt, 20)
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 20


def test_a_stream_brings_the_same_text_in_pieces(client: httpx2.Client) -> None:
    request = {"prompt": "Once", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    with client.stream("POST", STREAM, json=request) as response:
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line]

    assert data.pop() == "[DONE]"
    chunks = [json.loads(event) for event in data]
    assert "".join(chunk["text"] for chunk in chunks) == greedy_text("Once", 20)
    assert len(chunks) > 5
    assert chunks[-1]["finish_reason"] == "length"


def test_a_conversation_goes_through_the_chat_template(client: httpx2.Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    tokenizer = tiny_tokenizer()
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]

    found = answer(client, messages=messages, max_tokens=10)

    expected = generated(tiny_decoder("llama"), tokens, 10)
    assert found["choices"][0]["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert found["usage"]["prompt_tokens"] == len(tokens)


def test_seeds_make_answers_that_can_be_had_again(client: httpx2.Client) -> None:
    request = {"prompt": "Once", "max_tokens": 12, "temperature": 1, "n": 2}

    first, second = answer(client, **request, seed=5), answer(client, **request, seed=5)
    other = answer(client, **request, seed=6)

    assert first["choices"] == second["choices"]
    assert first["choices"][0]["text"] != first["choices"][1]["text"]
    assert first["choices"][1]["text"] == other["choices"][0]["text"]


def test_an_answer_has_the_format_that_is_asked_for(client: httpx2.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": schema}

    found = answer(
        client, prompt="x", max_tokens=60, temperature=1, seed=1, response_format=wanted, n=3
    )

    assert all(0 <= json.loads(c["text"])["age"] <= 99 for c in found["choices"])
    assert {choice["finish_reason"] for choice in found["choices"]} == {"stop"}


def test_an_echo_comes_first(client: httpx2.Client) -> None:
    assert answer(client, prompt="Once", max_tokens=3, echo=True)["choices"][0][
        "text"
    ] == "Once" + greedy_text("Once", 3)


REFUSED: dict[str, dict[str, Any]] = {
    "an id that is no token": {"prompt": [5, N_VOCAB]},
    "a negative id": {"prompt": [-1]},
    "no tokens": {"prompt": []},
    "an empty prompt": {"prompt": ""},
    "both": {"prompt": "x", "messages": [{"role": "user", "content": "x"}]},
    "nothing": {},
    "a negative temperature": {"prompt": "x", "temperature": -0.1},
    "too many stops": {"prompt": "x", "stop": ["a"] * 10_000},
    "an empty stop": {"prompt": "x", "stop": [""]},
    "a bias for no token": {"prompt": "x", "logit_bias": {str(N_VOCAB): 1.0}},
    "a stop that is no token": {"prompt": "x", "stop_token_ids": [N_VOCAB]},
    "too many choices": {"prompt": "x", "n": 5},
    "a schema that cannot be compiled": {
        "prompt": "x",
        "response_format": {"type": "json_schema", "json_schema": {"type": "nonsense"}},
    },
    "an unknown field": {"prompt": "x", "best_of": 3},
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_is_refused_before_it_comes_near_the_model(
    client: httpx2.Client, request_: dict[str, Any]
) -> None:
    response = client.post(PREDICT, json=request_)

    assert response.status_code == 422
    assert response.json()["error"]["code"] in ("validation_error", "invalid_input")


@pytest.mark.parametrize(
    ("param", "request_"),
    [
        ("prompt", {"prompt": "x" * 500}),
        ("messages", {"messages": [{"role": "user", "content": "x" * 500}]}),
        ("max_tokens", {"prompt": "x", "max_tokens": 128}),
    ],
)
def test_what_is_longer_than_the_context_is_told_by_a_code_of_its_own(
    client: httpx2.Client, param: str, request_: dict[str, Any]
) -> None:
    response = client.post(PREDICT, json=request_)

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == param


def test_a_temperature_that_is_no_number_is_refused(client: httpx2.Client) -> None:
    response = client.post(
        PREDICT,
        content='{"prompt": "x", "temperature": NaN}',
        headers={"content-type": "application/json"},
    )

    assert response.status_code in (400, 422)


def loaded(folder: Path, **options: Any) -> TextGeneration:
    handler = TextGeneration(folder, **options)
    handler.context = Context(name="chat")
    handler.load()
    return handler


def test_the_memory_that_is_taken_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        handler = loaded(folder, slots=3, max_length=100)

    [record] = [r for r in caplog.records if r.message == "generation.memory.reserved"]
    # Three layers, keys and values, 2 heads of 16 numbers of 4 bytes each.
    assert record.__dict__["bytes"] == 3 * 101 * 3 * 2 * 2 * 16 * 4
    assert handler.slots == 3


def test_what_does_not_fit_is_refused_in_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mlserve.huggingface.generation.handler._free_bytes", lambda device: 1_000_000
    )

    with pytest.raises(ConfigurationError, match=r"16 slots of 200 tokens take .* MiB"):
        loaded(folder, slots=16, max_length=200)
    assert loaded(folder, max_length=200).slots == 3


def test_a_model_with_windows_is_computed_one_after_the_other(tmp_path: Path) -> None:
    save_tiny("windowed", tmp_path)

    engine = loaded(tmp_path)._engine
    assert isinstance(engine, Engine)
    assert isinstance(engine._memory, SequentialMemory)
    with pytest.raises(ConfigurationError, match="sequential"):
        loaded(tmp_path, engine="slots")


@pytest.mark.parametrize("options", [{"slots": 0}, {"max_length": 0}, {"engine": "fast"}])
def test_options_that_cannot_be_right_are_refused(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        TextGeneration(folder, **options)


def test_a_call_of_a_tool_is_told_from_the_text(folder: Path) -> None:
    call = r'<tool_call>\{"name": "weather", "arguments": \{"city": "[a-z]{1,5}"\}\}</tool_call>'
    handler = partial(TextGeneration, folder, slots=2, max_length=256, regex=rf"Well\.{call}")
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    request = {"messages": [{"role": "user", "content": "?"}], "tools": [tool], "seed": 2}

    with running(ModelServer().add("chat", handler)) as client:
        found = client.post(PREDICT, json=request).json()["choices"][0]

    assert found["finish_reason"] == "tool_calls"
    assert found["text"] == "Well."
    [told] = found["tool_calls"]
    assert told["function"]["name"] == "weather"
    assert json.loads(told["function"]["arguments"])["city"].islower()
