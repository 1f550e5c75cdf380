"""Clients that leave, and requests whose time runs out."""

import threading
import time
from typing import Any

import httpx2
import openai
import pytest
from tests.http.waiting import until
from tests.protocols.openai.parrot import Heard, Lengths

from mlserve import Batching, Call, ModelHandler, ModelServer
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.tasks.embedding import Embedding, EmbeddingRequest
from mlserve.testing import running

pytestmark = pytest.mark.slow

ENDLESS: Any = {"model": "parrot", "messages": [{"role": "user", "content": "forever"}]}


@pytest.mark.parametrize("prompts", [["forever"], ["forever", "forever", "one"]])
def test_a_client_that_leaves_a_stream_closes_the_generator(
    client: openai.OpenAI, heard: Heard, server: ModelServer, prompts: list[str]
) -> None:
    stream = client.completions.create(model="parrot", prompt=prompts, stream=True)
    chunks = [next(stream) for _ in range(5)]
    stream.close()

    assert len(chunks) == 5
    assert heard.closed.wait(5)
    until(lambda: server.model_for("parrot").statistics().in_flight == 0)
    until(lambda: server.model_for("parrot").statistics().running == 0)


def test_a_client_that_leaves_before_its_answer_cancels_it(url: str, heard: Heard) -> None:
    def ask() -> None:
        with (
            pytest.raises(openai.APITimeoutError),
            openai.OpenAI(
                base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=0.5
            ) as client,
        ):
            client.chat.completions.create(**ENDLESS)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(10)

    assert heard.begun.is_set()
    assert heard.closed.wait(5)


def test_a_client_that_leaves_gives_up_all_its_texts() -> None:
    begun, left = threading.Event(), threading.Event()
    n_run: list[int] = []

    class Slow(ModelHandler[EmbeddingRequest, Embedding]):
        def infer(self, inputs: list[EmbeddingRequest], calls: list[Call]) -> list[Embedding]:
            begun.set()
            n_run.append(len(inputs))
            until(lambda: all(call.cancelled for call in calls))
            left.set()
            return Lengths().infer(inputs)

    server = ModelServer().use(OpenAIProtocol())
    server.add("slow", Slow, batching=Batching(max_size=2))
    with running(server) as http:
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/embeddings", json={"model": "slow", "input": ["a"] * 100}, timeout=0.5)
        assert begun.wait(5)
        assert left.wait(5)
        until(lambda: server.model_for("slow").statistics().running == 0)

    assert sum(n_run) <= 4


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_header_shortens_the_time(client: openai.OpenAI, is_stream: bool) -> None:
    began_at = time.monotonic()
    with pytest.raises(openai.APIError, match=r"within 0\.3 s"):
        list(
            client.chat.completions.create(
                **ENDLESS, stream=is_stream, extra_headers={"X-Request-Timeout": "0.3"}
            )
        )

    assert time.monotonic() - began_at < 5


def test_a_malformed_time_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ENDLESS, extra_headers={"X-Request-Timeout": "soon"})

    assert caught.value.code == "invalid_timeout"
