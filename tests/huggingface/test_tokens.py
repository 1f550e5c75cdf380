"""The tokens of a request are in its line of the log, in the metrics and in its answer."""

import json
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx2
import pytest
from tests.http.waiting import until
from tests.huggingface.generation.tiny_decoders import save_tiny
from tests.huggingface.tiny_models import tiny_encoder
from tests.observability.reading import scrape

from mlserve import ModelServer, Replicas
from mlserve.huggingface import TextEmbedding, TextGeneration
from mlserve.testing import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

REQUEST = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module", params=["thread", "process"])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    placed = Replicas(placement=request.param)
    decoder = save_tiny("llama", tmp_path_factory.mktemp("llama"))
    encoder = tiny_encoder(tmp_path_factory.mktemp("bert") / "encoder")
    chat = partial(TextGeneration, decoder, slots=4, max_length=128)
    server = (
        ModelServer()
        .add("tokens-chat", chat, replicas=placed)
        .add("tokens-vectors", partial(TextEmbedding, encoder), replicas=placed)
    )
    with running(server) as client:
        yield client


class Counted:
    """What a request has added to the counts, and what its line in the log says."""

    def __init__(self, client: httpx2.Client, model: str, caplog: pytest.LogCaptureFixture) -> None:
        self._client = client
        self._labels = {"model": model, "version": "v1"}
        self._caplog = caplog
        self._before = self._tokens()
        caplog.clear()

    def added(self) -> dict[str, float]:
        until(lambda: bool(self._lines()))
        return {kind: n - self._before[kind] for kind, n in self._tokens().items()}

    def line(self) -> dict[str, Any]:
        [line] = self._lines()
        return line

    def _tokens(self) -> dict[str, float]:
        found = scrape(self._client)
        return {
            kind: found.value("mlserve_tokens_total", **self._labels, kind=kind) or 0
            for kind in ("prompt", "completion")
        }

    def _lines(self) -> list[dict[str, Any]]:
        records = [r for r in self._caplog.records if r.name == "mlserve.access"]
        return [json.loads(record.getMessage()) for record in records]


@pytest.mark.parametrize("n", [1, 2])
def test_a_generation_counts_what_its_usage_says(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture, n: int
) -> None:
    caplog.set_level(logging.INFO, logger="mlserve.access")
    counted = Counted(client, "tokens-chat", caplog)

    answer = client.post("/v1/models/tokens-chat/predict", json={**REQUEST, "n": n})

    usage = answer.json()["usage"]
    assert counted.added() == {
        "prompt": usage["prompt_tokens"],
        "completion": usage["completion_tokens"],
    }
    assert usage["completion_tokens"] == 6 * n
    assert counted.line()["tokens"] == usage["prompt_tokens"] + 6 * n


def test_a_stream_counts_what_its_usage_says(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mlserve.access")
    counted = Counted(client, "tokens-chat", caplog)

    answer = client.post("/v1/models/tokens-chat/stream", json=REQUEST)

    usage = json.loads(answer.text.split("\n\n")[-3].removeprefix("data: "))["usage"]
    assert counted.added() == {"prompt": usage["prompt_tokens"], "completion": 6}
    assert counted.line()["tokens"] == usage["prompt_tokens"] + 6


def test_an_embedding_counts_the_tokens_that_it_tells(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mlserve.access")
    counted = Counted(client, "tokens-vectors", caplog)

    answer = client.post("/v1/models/tokens-vectors/predict", json={"text": "a b c"})

    n = answer.json()["tokens"]
    assert n > 0
    assert counted.added() == {"prompt": n, "completion": 0}
    assert counted.line()["tokens"] == n
