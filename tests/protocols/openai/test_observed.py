"""What log, metrics and traces say of the protocol's requests."""

import json
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.observability.reading import scrape
from tests.observability.spans import Spans
from tests.protocols.openai.parrot import Heard, Parrot

from mlserve import Call, ModelHandler, ModelServer
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.tasks.embedding import Embedding, EmbeddingRequest
from mlserve.tasks.generation import Generation, GenerationRequest


class Counting(Parrot):
    def infer(self, inputs: list[GenerationRequest], calls: list[Call]) -> list[Generation]:
        for call in calls:
            call.annotate(prompt_tokens=2, completion_tokens=3)
        return super().infer(inputs, calls)


class Vectors(ModelHandler[EmbeddingRequest, Embedding]):
    def preprocess(self, request: EmbeddingRequest, call: Call) -> EmbeddingRequest:
        call.annotate(prompt_tokens=5)
        return request

    def infer(self, inputs: list[EmbeddingRequest]) -> list[Embedding]:
        return [Embedding(embedding=[1.0], tokens=5) for _ in inputs]


CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, "chat", (2, 3))
TEXTS = ("/v1/completions", {"prompt": ["a", "b"]}, "text_completion", (4, 6))
EMBEDDINGS = ("/v1/embeddings", {"input": ["a", "b", "c"]}, "embeddings", (15, 0))


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    return Spans(monkeypatch)


@pytest.fixture
def client(spans: Spans) -> Iterator[TestClient]:
    server = ModelServer().use(OpenAIProtocol())
    server.add("observed-texts", partial(Counting, Heard())).add("observed-vectors", Vectors)
    with TestClient(server.build()) as client:
        yield client


@pytest.mark.parametrize(("path", "body", "operation", "counts"), [CHAT, TEXTS, EMBEDDINGS])
def test_the_tokens_of_all_parts_of_a_request_are_told_under_its_operation(
    client: TestClient,
    spans: Spans,
    caplog: pytest.LogCaptureFixture,
    path: str,
    body: Any,
    operation: str,
    counts: tuple[int, int],
) -> None:
    caplog.set_level(logging.INFO, logger="mlserve.access")
    model = "observed-vectors" if operation == "embeddings" else "observed-texts"
    labels = {"model": model, "version": "v1"}
    before = scrape(client)

    assert client.post(path, json={"model": model, **body}).status_code == 200

    after = scrape(client)
    [line] = [json.loads(r.getMessage()) for r in caplog.records if r.name == "mlserve.access"]
    attributes = dict(spans.one(f"POST {path}").attributes or {})
    assert (line["model"], line["tokens"]) == (model, sum(counts))
    for kind, attribute, n in zip(
        ("prompt", "completion"),
        ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"),
        counts,
        strict=True,
    ):
        was = before.value("mlserve_tokens_total", **labels, kind=kind) or 0
        assert after.value("mlserve_tokens_total", **labels, kind=kind) == was + n
        assert attributes.get(attribute, 0) == n
    assert attributes["gen_ai.operation.name"] == operation
    assert attributes["gen_ai.request.model"] == model
