"""Vectors with the real client."""

import base64
import struct
from typing import Any

import httpx2
import openai
import pytest

pytestmark = pytest.mark.slow


def test_the_client_reads_what_it_asks_for_by_default(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="lengths", input="hello you")

    assert answer.data[0].embedding == [3.0, 4.0, 9.0]
    assert answer.usage.prompt_tokens == 2


def test_base64_is_little_endian_float32(url: str) -> None:
    body = {"model": "lengths", "input": "ab", "encoding_format": "base64"}
    answer = httpx2.post(f"{url}/v1/embeddings", json=body).json()

    packed = base64.b64decode(answer["data"][0]["embedding"])
    assert struct.unpack("<3f", packed) == (3.0, 4.0, 2.0)


def test_numbers_are_given_where_they_are_asked_for(url: str) -> None:
    body = {"model": "lengths", "input": ["a", "bc"], "encoding_format": "float"}
    answer = httpx2.post(f"{url}/v1/embeddings", json=body).json()

    assert [item["embedding"] for item in answer["data"]] == [[3.0, 4.0, 1.0], [3.0, 4.0, 2.0]]
    assert [item["index"] for item in answer["data"]] == [0, 1]


def test_many_texts_come_back_in_order_and_share_batches(client: openai.OpenAI, url: str) -> None:
    texts = ["x" * (1 + number % 50) for number in range(2000)]
    answer = client.embeddings.create(model="lengths", input=texts)

    assert [item.embedding[2] for item in answer.data] == [float(len(text)) for text in texts]
    statistics = httpx2.get(f"{url}/v1/models/lengths").json()["statistics"]
    assert statistics["requests"] == 2000
    assert statistics["mean_batch_size"] > 2


def test_too_many_texts_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="lengths", input=["x"] * 2049)

    assert caught.value.param == "input"


def test_fewer_dimensions_have_length_one(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="lengths", input="a", dimensions=2)

    assert answer.data[0].embedding == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"input": "a", "dimensions": 4}, "dimensions", "invalid_input"),
        ({"input": [1, 2]}, "input", "unsupported_parameter"),
        ({"input": ""}, "input", "validation_error"),
        ({"input": []}, "input", "validation_error"),
        ({"input": ["a", 1]}, "input", "validation_error"),
        ({"input": "a", "extra_body": {"task": "query"}}, "task", "unsupported_parameter"),
    ],
)
def test_what_cannot_be_embedded_is_named(
    client: openai.OpenAI, options: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="lengths", **options)

    assert (caught.value.param, caught.value.code) == (param, code)
