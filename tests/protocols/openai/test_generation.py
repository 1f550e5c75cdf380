"""The real client and a real language model, a tiny one with random weights."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel, ConfigDict, Field
from tests.http.waiting import until
from tests.huggingface.generation.tiny_decoders import (
    N_VOCAB,
    generated,
    save_tiny,
    tiny_decoder,
    tiny_tokenizer,
)

from mlserve import ModelServer
from mlserve.huggingface import TextGeneration
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.testing import running

pytestmark = pytest.mark.slow

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}
CHAT: dict[str, Any] = {"model": "chat", "messages": HELLO, "max_completion_tokens": 20, **GREEDY}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = r'<tool_call>\{"name": "weather", "arguments": \{"city": "[a-z]{1,5}"\}\}</tool_call>'
ASK: dict[str, Any] = {"model": "caller", "messages": HELLO, "tools": [WEATHER], "seed": 2}


class Person(BaseModel):
    """What an answer is held to; short, as a random model ends nothing by itself."""

    model_config = ConfigDict(extra="forbid")

    age: int = Field(ge=0, le=99)
    mood: Literal["happy", "sad"]


@contextmanager
def client_of(server: ModelServer) -> Iterator[openai.OpenAI]:
    with (
        running(server.use(OpenAIProtocol())) as http,
        openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    server = ModelServer().add("chat", partial(TextGeneration, folder, slots=4, max_length=128))
    regex = rf"Well\.{CALL}"
    server.add("caller", partial(TextGeneration, folder, slots=2, max_length=256, regex=regex))
    with client_of(server) as client:
        yield client


def greedy_text(tokens: list[int], n: int) -> str:
    written = generated(tiny_decoder("llama"), tokens, n)
    return str(tiny_tokenizer().decode(written, skip_special_tokens=True))


def tokens_of(messages: list[Any]) -> list[int]:
    tokenizer = tiny_tokenizer()
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(map(int, tokenizer(text, add_special_tokens=False)["input_ids"]))


def test_a_conversation_is_gone_on_with_as_generate_does(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT)

    [choice] = answer.choices
    assert choice.message.content == greedy_text(tokens_of(HELLO), 20)
    assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokens_of(HELLO))
    assert answer.usage.completion_tokens == 20


def test_the_pieces_of_a_stream_are_the_whole_answer(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(**CHAT, **options)

    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == greedy_text(tokens_of(HELLO), 20)
    assert len([piece for piece in pieces if piece]) > 5
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.choices == []
    assert last.usage.completion_tokens == 20


def test_the_clients_own_helper_puts_a_stream_together(client: openai.OpenAI) -> None:
    text = greedy_text(tokens_of(HELLO), 20)
    with client.chat.completions.stream(**CHAT, stop=text[8:11]) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()

    assert len(pieces) > 1
    assert "".join(pieces) == final.choices[0].message.content == text.partition(text[8:11])[0]


@pytest.mark.parametrize("seed", [1, 2])
def test_an_answer_is_parsed_into_the_clients_type(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.parse(
        model="chat", messages=HELLO, response_format=Person, temperature=1, seed=seed
    )

    assert isinstance(answer.choices[0].message.parsed, Person)
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_is_parsed_into_the_clients_type(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="chat", messages=HELLO, response_format=Person, temperature=1, seed=3
    ) as stream:
        final = stream.get_final_completion()

    assert isinstance(final.choices[0].message.parsed, Person)


def test_choices_differ_and_a_seed_gives_them_again(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str | None]:
        choices = client.chat.completions.create(
            model="chat", messages=HELLO, max_tokens=12, temperature=1, n=3, seed=seed
        ).choices
        assert [choice.index for choice in choices] == [0, 1, 2]
        return [choice.message.content for choice in choices]

    first = texts(5)

    assert len(set(first)) == 3
    assert texts(5) == first
    assert texts(6)[0] == first[1]


def test_probabilities_are_told_of_each_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3)

    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert len(tokens) == 20
    for token in tokens:
        logprobs = [top.logprob for top in token.top_logprobs]
        assert len(logprobs) == 3
        assert logprobs == sorted(logprobs, reverse=True)
        assert token.logprob == logprobs[0] <= 0


def test_an_answer_ends_before_a_stop(client: openai.OpenAI) -> None:
    text = greedy_text(tokens_of(HELLO), 20)
    stop = text[8:11]

    whole = client.chat.completions.create(**CHAT, stop=[stop, "never written"])
    stream = client.chat.completions.create(**CHAT, stop=stop, stream=True)

    until_stop = text.partition(stop)[0]
    assert until_stop
    assert whole.choices[0].message.content == until_stop
    assert whole.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == until_stop


def test_prompts_run_together_and_answers_stay_apart(client: openai.OpenAI) -> None:
    prompts = [tokens_of([{"role": "user", "content": "x" * n}]) for n in (1, 30, 9)]

    def ask(prompt: list[int]) -> str:
        answer = client.completions.create(model="chat", prompt=prompt, max_tokens=15, **GREEDY)
        return str(answer.choices[0].text)

    both = client.completions.create(model="chat", prompt=prompts, max_tokens=15, n=2, **GREEDY)
    with ThreadPoolExecutor(6) as pool:
        alone = list(pool.map(ask, prompts * 2))

    wanted = [greedy_text(prompt, 15) for prompt in prompts]
    assert alone == wanted * 2
    assert [choice.text for choice in both.choices] == [t for t in wanted for _ in range(2)]
    assert both.usage is not None
    assert both.usage.completion_tokens == 15 * 6


def call_of(message: ChatCompletionMessage) -> ChatCompletionMessageFunctionToolCall:
    [call] = message.tool_calls or []
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    return call


def test_a_call_of_a_tool_and_its_answer_go_to_and_fro(client: openai.OpenAI) -> None:
    [choice] = client.chat.completions.create(**ASK).choices

    assert choice.finish_reason == "tool_calls"
    call = call_of(choice.message)
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"].islower()

    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    again = client.chat.completions.create(**ASK | {"messages": [*HELLO, choice.message, result]})

    assert again.usage is not None
    assert again.usage.prompt_tokens > len(tokens_of(HELLO))


def test_a_streamed_call_is_that_of_a_whole_answer(client: openai.OpenAI) -> None:
    def told(message: ChatCompletionMessage) -> Any:
        function = call_of(message).function
        return message.content, function.name, json.loads(function.arguments)

    whole = client.chat.completions.create(**ASK).choices[0].message
    with client.chat.completions.stream(**ASK) as stream:
        final = stream.get_final_completion().choices[0]

    assert final.finish_reason == "tool_calls"
    assert told(final.message) == told(whole)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("param", "asked"),
    [
        ("messages", {"messages": [{"role": "user", "content": "x" * 500}]}),
        ("max_tokens", {"max_completion_tokens": 128}),
    ],
)
def test_what_is_longer_than_the_context_is_refused_as_at_openai(
    client: openai.OpenAI, param: str, asked: dict[str, Any], *, is_stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**CHAT | asked, stream=is_stream)

    assert caught.value.status_code == 400
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == param
    assert "together they may be 128" in caught.value.message


@pytest.mark.parametrize(
    ("param", "asked"),
    [
        ("prompt", {"prompt": [5, N_VOCAB]}),
        ("logit_bias", {"prompt": "x", "logit_bias": {str(N_VOCAB): 1}}),
        ("stop_token_ids", {"prompt": "x", "extra_body": {"stop_token_ids": [N_VOCAB]}}),
    ],
)
def test_a_token_that_the_model_does_not_know_is_refused(
    client: openai.OpenAI, param: str, asked: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="chat", **asked)

    assert caught.value.code == "invalid_input"
    assert caught.value.param == param


@pytest.fixture
def endless(tmp_path: Path) -> ModelServer:
    """A model with one row and room for a text that takes minutes to write."""
    folder = save_tiny("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 20_000
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    handler = partial(TextGeneration, folder, slots=1, max_length=20_000)
    return ModelServer().add("chat", handler)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_gives_its_row_to_the_next(
    endless: ModelServer, *, is_stream: bool
) -> None:
    long = {**CHAT, "max_completion_tokens": 19_000}
    with client_of(endless) as client:
        model = endless.model_for("chat")
        if is_stream:
            stream = client.chat.completions.create(**long, stream=True)
            assert len([next(stream) for _ in range(5)]) == 5
            stream.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.5).chat.completions.create(**long)

        # It would write for half a minute.
        until(lambda: model.statistics().running == model.statistics().in_flight == 0, timeout_s=5)
        answer = client.with_options(timeout=10).chat.completions.create(**CHAT)

        assert answer.choices[0].message.content
        assert model.statistics().requests == 2
