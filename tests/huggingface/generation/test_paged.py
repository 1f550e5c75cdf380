"""The paged engine: what transformers computes, behind our own checks."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.huggingface.generation.test_handler import PREDICT, STREAM, answer, greedy_text
from tests.huggingface.generation.tiny_decoders import save_tiny

from mlserve import ConfigurationError, Context, ModelServer
from mlserve.huggingface import TextGeneration
from mlserve.huggingface.generation.paged import PagedEngine
from mlserve.huggingface.generation.sequences import Prompt
from mlserve.testing import running

PROMPTS = ["Once upon a time", "🙂 and 日本語", "x" * 90, "a", "Two and two", "The sea is"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx2.Client]:
    handler = partial(TextGeneration, folder, slots=4, max_length=128, engine="paged")
    with running(ModelServer().add("chat", handler)) as client:
        yield client


@pytest.fixture
def handler(folder: Path) -> Iterator[TextGeneration]:
    handler = TextGeneration(folder, slots=4, max_length=128, engine="paged")
    handler.context = Context(name="chat", version="v1", replica=0, device="cpu")
    handler.load()
    yield handler
    handler.unload()


def engine_of(handler: TextGeneration) -> PagedEngine:
    assert isinstance(handler._engine, PagedEngine)
    return handler._engine


def test_those_who_are_computed_together_get_what_generate_gives_each(
    client: httpx2.Client,
) -> None:
    def ask(prompt: str) -> dict[str, Any]:
        return answer(client, prompt=prompt, max_tokens=20)

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        found = list(pool.map(ask, PROMPTS))

    texts = [each["choices"][0]["text"] for each in found]
    assert texts == [greedy_text(prompt, 20) for prompt in PROMPTS]
    assert [each["usage"]["completion_tokens"] for each in found] == [20] * len(PROMPTS)
    assert {each["choices"][0]["finish_reason"] for each in found} == {"length"}


def test_a_stream_brings_the_same_text_in_pieces(client: httpx2.Client) -> None:
    request = {"prompt": "Once", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    with client.stream("POST", STREAM, json=request) as response:
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line]

    assert data.pop() == "[DONE]"
    chunks = [json.loads(event) for event in data]
    assert "".join(chunk["text"] for chunk in chunks) == greedy_text("Once", 20)
    assert len(chunks) > 5
    assert chunks[-1]["usage"]["completion_tokens"] == 20


def test_each_choice_is_written_to_its_end(client: httpx2.Client) -> None:
    found = answer(client, prompt="Once", n=3, max_tokens=12)

    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert {choice["text"] for choice in found["choices"]} == {greedy_text("Once", 12)}
    assert found["usage"]["completion_tokens"] == 36


def test_a_text_ends_where_it_is_asked_to(client: httpx2.Client) -> None:
    whole = greedy_text("Once", 40)
    stop = whole[6:8]

    found = answer(client, prompt="Once", max_tokens=40, stop=[stop])

    assert found["choices"][0]["text"] == whole[: whole.index(stop)]
    assert found["choices"][0]["finish_reason"] == "stop"


def test_chance_is_taken_where_it_is_asked_for(client: httpx2.Client) -> None:
    texts = [answer(client, prompt="Once", max_tokens=12, temperature=5.0) for _ in range(3)]
    certain = answer(client, prompt="Once", max_tokens=12, temperature=1.0, top_k=1)

    assert len({found["choices"][0]["text"] for found in texts}) > 1
    assert certain["choices"][0]["text"] == greedy_text("Once", 12)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"seed": 1}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"min_p": 0.5}, "min_p"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_it_has_not_is_refused_by_name(
    client: httpx2.Client, asked: dict[str, Any], param: str
) -> None:
    response = client.post(PREDICT, json={"prompt": "Once", "max_tokens": 4, **asked})

    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "unsupported_parameter"
    assert response.json()["error"]["param"] == param
    assert answer(client, prompt="Once", max_tokens=4)["choices"][0]["text"] == greedy_text(
        "Once", 4
    )


def test_what_would_end_its_thread_never_reaches_it(client: httpx2.Client) -> None:
    wrongs: list[dict[str, Any]] = [
        {"prompt": [100_000]},
        {"prompt": []},
        {"prompt": "Once", "max_tokens": 500},
    ]
    for wrong in wrongs:
        assert client.post(PREDICT, json=wrong).status_code in (400, 422)

    assert answer(client, prompt="Once", max_tokens=4)["usage"]["completion_tokens"] == 4


def steps(engine: PagedEngine, n: int = 2_000) -> list[Any]:
    """Step until there is news."""
    for _ in range(n):
        if news := engine.step():
            return news
    raise AssertionError("Nothing came.")


def test_who_leaves_is_forgotten(handler: TextGeneration) -> None:
    engine = engine_of(handler)
    leaving = engine.admit(Prompt(tokens=[5, 6, 7], max_tokens=100))
    staying = engine.admit(Prompt(tokens=[5, 6, 7], max_tokens=30))
    steps(engine)

    engine.evict(leaving)

    news = [advance for _ in range(30) if engine.n_running for advance in steps(engine)]
    assert {id(advance.sequence) for advance in news} == {id(staying)}
    assert news[-1].is_finished
    assert engine.n_running == 0


def test_an_engine_that_has_ended_fails_its_requests_and_begins_anew(
    handler: TextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(handler)

    def broken(*args: Any) -> None:
        raise RuntimeError("The device is on fire.")

    with monkeypatch.context() as patch:
        patch.setattr(engine._manager, "_generation_step", broken)
        running = engine.admit(Prompt(tokens=[5, 6, 7], max_tokens=10))
        (advance,) = steps(engine)
    assert advance.sequence is running
    assert "fire" not in str(advance.error)
    engine._manager._generation_thread.join(10)

    engine.admit(Prompt(tokens=[5, 6, 7], max_tokens=3))
    news = [advance for _ in range(3) if engine.n_running for advance in steps(engine)]
    assert news[-1].is_finished


def test_too_little_memory_is_told_in_words(folder: Path) -> None:
    handler = TextGeneration(folder, slots=10**9, engine="paged")
    handler.context = Context(name="chat", version="v1", replica=0, device="cpu")

    with pytest.raises(ConfigurationError, match="slots"):
        handler.load()
