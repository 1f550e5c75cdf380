"""Predictions over HTTP: paths, versions, tags, hooks of either kind."""

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from mlserve import ConfigurationError, ModelHandler, ModelServer
from mlserve.testing import EchoHandler


class Text(BaseModel):
    text: str


class Length(BaseModel):
    length: int


class Measure(ModelHandler[Text, Length]):
    """Adds a mark in every hook, so that an answer shows which of them ran."""

    def preprocess(self, request: Text) -> str:
        return request.text + "!"

    def infer(self, inputs: list[str]) -> list[int]:
        return [len(text) for text in inputs]

    def postprocess(self, output: int) -> Length:
        return Length(length=output)


class Hundred(ModelHandler[Text, Length]):
    def infer(self, inputs: list[Text]) -> list[Length]:
        return [Length(length=100) for _ in inputs]


def test_json_goes_through_all_hooks_and_comes_out_as_json() -> None:
    with TestClient(ModelServer().add("measure", Measure).build()) as client:
        answer = client.post("/v1/models/measure/predict", json={"text": "abc"})

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"length": 4}


def test_the_alias_follows_the_highest_version_and_not_the_last_one_added() -> None:
    server = ModelServer().add("m", Hundred, version="v10").add("m", Measure, version="v9")

    with TestClient(server.build()) as client:
        answers = [
            client.post(f"{base}/models/m/predict", json={"text": ""}).json()["length"]
            for base in ("", "/v10", "/v9")
        ]

    assert answers == [100, 100, 1]


def test_models_side_by_side_answer_for_themselves() -> None:
    server = ModelServer().add("measure", Measure).add("hundred", Hundred)

    with TestClient(server.build()) as client:
        measure = client.post("/v1/models/measure/predict", json={"text": ""}).json()
        hundred = client.post("/v1/models/hundred/predict", json={"text": ""}).json()

    assert (measure, hundred) == ({"length": 1}, {"length": 100})


def test_path_moves_the_predict_route_in_its_version_and_in_the_alias() -> None:
    server = ModelServer().add("measure", Measure, version="v2", path="/texts/measure")

    with TestClient(server.build()) as client:
        moved = client.post("/v2/texts/measure", json={"text": ""})
        alias = client.post("/texts/measure", json={"text": ""})

    assert moved.json() == alias.json() == {"length": 1}


def test_the_given_tags_group_the_routes_in_openapi() -> None:
    app = ModelServer().add("measure", Measure, tags=["texts", "fast"]).build()

    operation = app.openapi()["paths"]["/v1/models/measure/predict"]["post"]

    assert operation["tags"] == ["texts", "fast"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"name": "a", "path": "/same"}, {"name": "b", "path": "/same"}),
        ({"name": "a"}, {"name": "b", "path": "/models/a/predict"}),
        ({"name": "a", "path": "/models"}, {"name": "b", "path": "/models"}),
    ],
)
def test_two_models_that_claim_one_path_are_refused(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    server = ModelServer().add(handler=Measure, **first).add(handler=Measure, **second)

    with pytest.raises(ConfigurationError, match="is taken in the application"):
        server.build()


def test_async_hooks_answer_like_sync_ones() -> None:
    class Remote(ModelHandler[Text, Length]):
        async def load(self) -> None:
            await asyncio.sleep(0)
            self.mark = "!"

        async def preprocess(self, request: Text) -> str:
            await asyncio.sleep(0)
            return request.text + self.mark

        async def infer(self, inputs: list[str]) -> list[int]:
            await asyncio.sleep(0)
            return [len(text) for text in inputs]

        async def postprocess(self, output: int) -> dict[str, int]:
            await asyncio.sleep(0)
            return {"length": output}

    with TestClient(ModelServer().add("remote", Remote).build()) as client:
        answer = client.post("/v1/models/remote/predict", json={"text": "abc"})

    assert answer.json() == {"length": 4}


def test_sync_and_async_hooks_may_be_mixed() -> None:
    class Mixed(ModelHandler[Text, Length]):
        def preprocess(self, request: Text) -> str:
            return request.text + "!"

        async def infer(self, inputs: list[str]) -> list[int]:
            await asyncio.sleep(0)
            return [len(text) for text in inputs]

        def postprocess(self, output: int) -> Length:
            return Length(length=output)

    with TestClient(ModelServer().add("mixed", Mixed).build()) as client:
        answer = client.post("/v1/models/mixed/predict", json={"text": "abc"})

    assert answer.json() == {"length": 4}


def test_json_with_a_charset_or_a_structured_suffix_is_json() -> None:
    with TestClient(ModelServer().add("echo", EchoHandler).build()) as client:
        statuses = [
            client.post(
                "/v1/models/echo/predict",
                content='{"text": "ä"}'.encode(),
                headers={"Content-Type": kind},
            ).status_code
            for kind in ("application/json; charset=utf-8", "application/cloudevents+json")
        ]

    assert statuses == [200, 200]


def test_many_requests_at_once_each_get_their_own_answer() -> None:
    with TestClient(ModelServer().add("echo", EchoHandler).build()) as client:
        answers = [
            client.post("/v1/models/echo/predict", json={"text": str(number)}).json()["text"]
            for number in range(50)
        ]

    assert answers == [str(number) for number in range(50)]
