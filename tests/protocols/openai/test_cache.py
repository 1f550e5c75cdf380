"""Answers that are kept, by OpenAI's routes."""

from typing import Any

import httpx2
import pytest
from tests.protocols.openai.parrot import Lengths

from mlserve import Cache, ModelServer
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.testing import running

pytestmark = pytest.mark.slow


def embed(client: httpx2.Client, texts: Any, **headers: str) -> tuple[Any, str | None]:
    body = {"model": "lengths", "input": texts, "encoding_format": "float"}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = client.post("/v1/embeddings", json=body, headers=names)
    assert answer.status_code == 200, answer.text
    return answer.json(), answer.headers.get("cache-status")


def test_an_equal_embedding_is_given_from_the_cache() -> None:
    server = ModelServer().use(OpenAIProtocol()).add("lengths", Lengths, cache=Cache())
    with running(server) as client:
        first, status = embed(client, "hello")
        again, status_again = embed(client, "hello")
        _, status_anew = embed(client, "hello", cache_control="no-cache")
        several, status_of_several = embed(client, ["hello", "you"])
        n_computed = server.model_for("lengths").statistics().requests

    assert first == again
    assert (status, status_again) == ("mlserve; fwd=uri-miss; stored", "mlserve; hit")
    assert status_anew == "mlserve; fwd=request; stored"
    assert several["data"][0] == first["data"][0]
    assert status_of_several is None
    assert n_computed == 3
