"""Request and response types of every kind: files, bytes, arrays, dataclasses, plain JSON."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import Depends, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field
from tests.http.answers import error_of
from typing_extensions import TypedDict

from mlserve import Binary, Limits, ModelHandler, ModelServer, Upload

PREDICT = "/v1/models/m/predict"


class Label(BaseModel):
    label: str
    score: float


@dataclass
class Point:
    x: float
    y: float = 0.0


class Row(TypedDict):
    name: str
    n: int


def app_of(request: Any, response: Any, infer: Callable[[list[Any]], Any]) -> Any:
    class Typed(ModelHandler[request, response]):
        def infer(self, inputs: list[Any]) -> Any:
            return infer(inputs)

    return ModelServer().add("m", Typed).build()


def predict(app: Any, value: Any) -> Any:
    with TestClient(app) as client:
        answer = client.post(
            PREDICT, content=json.dumps(value), headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 200, answer.text
    return answer.json()


TYPES: dict[str, tuple[Any, Any]] = {
    "str": (str, "ä"),
    "int": (int, 7),
    "float": (float, 1.5),
    "bool": (bool, True),
    "a list": (list[float], [1.0, 2.0]),
    "a dict": (dict[str, int], {"a": 1}),
    "a dataclass": (Point, {"x": 1.0, "y": 2.0}),
    "a typed dict": (Row, {"name": "a", "n": 1}),
    "a list of models": (list[Label], [{"label": "a", "score": 1.0}]),
    "one of two": (int | str, "a"),
    "anything": (Any, {"a": [1, None, "b"]}),
    "null": (None, None),
    "a date": (date, "2024-02-29"),
}


@pytest.mark.parametrize(("declared", "value"), TYPES.values(), ids=TYPES)
def test_a_value_of_any_json_type_comes_back_as_it_was_sent(declared: Any, value: Any) -> None:
    assert predict(app_of(declared, declared, lambda inputs: inputs), value) == value


def test_handlers_get_instances_of_the_declared_type() -> None:
    seen: list[Any] = []

    def note(inputs: list[Any]) -> list[str]:
        seen.extend(inputs)
        return ["" for _ in inputs]

    predict(app_of(Point, str, note), {"x": 1})

    assert seen == [Point(1.0, 0.0)]


ARRAYS: dict[str, tuple[Any, Callable[[int], Any], Any]] = {
    "numbers of an array": (float, lambda n: np.full(n, 0.5, np.float32), 0.5),
    "numbers of a tensor": (float, lambda n: torch.full((n,), 0.5), 0.5),
    "whole numbers": (int, lambda n: np.arange(1, n + 1), 1),
    "truths": (bool, lambda n: np.ones(n, bool), True),
    "rows of an array": (list[float], lambda n: np.ones((n, 2)), [1.0, 1.0]),
    "rows of a tensor": (list[float], lambda n: torch.ones(n, 2), [1.0, 1.0]),
    "rows that need a gradient": (
        list[float],
        lambda n: torch.ones(n, 2, requires_grad=True),
        [1.0, 1.0],
    ),
    "a list of arrays": (list[list[int]], lambda n: [np.eye(2, dtype=int)] * n, [[1, 0], [0, 1]]),
    "arrays inside dicts": (
        Label,
        lambda n: [{"label": np.str_("a"), "score": np.float64(0.25)}] * n,
        {"label": "a", "score": 0.25},
    ),
    "tensors in tuples": (list[float], lambda n: [(torch.tensor(0.5), 1)] * n, [0.5, 1.0]),
    "a tuple of outputs": (float, lambda n: (0.5,) * n, 0.5),
}


@pytest.mark.parametrize(("declared", "make", "expected"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_and_tensors_become_json(
    declared: Any, make: Callable[[int], Any], expected: Any
) -> None:
    assert predict(app_of(str, declared, lambda inputs: make(len(inputs))), "") == expected


def test_undeclared_fields_of_an_output_are_dropped() -> None:
    secret = {"label": "a", "score": 1.0, "weights": "/srv/secret"}

    answer = predict(app_of(str, Label, lambda inputs: [secret for _ in inputs]), "")

    assert answer == {"label": "a", "score": 1.0}


def test_undeclared_fields_of_a_subclass_or_another_object_are_dropped() -> None:
    class Inner(Label):
        weights: str = "/srv/secret"

    class Other:
        label, score, weights = "a", 1.0, "/srv/secret"

    for output in (Inner(label="a", score=1.0), Other()):
        answer = predict(app_of(str, Label, lambda inputs, o=output: [o for _ in inputs]), "")  # type: ignore[misc]
        assert answer == {"label": "a", "score": 1.0}


def test_fields_are_written_by_their_aliases() -> None:
    class Aliased(BaseModel):
        total: float = Field(alias="total-sum")

    answer = predict(app_of(Aliased, Aliased, lambda inputs: inputs), {"total-sum": 1})

    assert answer == {"total-sum": 1.0}


def test_a_binary_answer_is_sent_as_it_is() -> None:
    app = app_of(str, Binary, lambda texts: [Binary(b"\x89PNG\x00", "image/png") for _ in texts])

    with TestClient(app) as client:
        answer = client.post(PREDICT, json="")

    assert answer.content == b"\x89PNG\x00"
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == "5"
    assert "x-request-id" in answer.headers


def test_a_binary_answer_of_text_says_its_encoding() -> None:
    app = app_of(str, Binary, lambda texts: [Binary.from_text("ä,1") for _ in texts])

    with TestClient(app) as client:
        answer = client.post(PREDICT, json="")

    assert (answer.text, answer.headers["content-type"]) == ("ä,1", "text/plain; charset=utf-8")


class Photo(BaseModel):
    image: Upload


class Order(BaseModel):
    image: Upload
    n: int = 1
    note: str | None = None


class Facts(ModelHandler[Photo, Any]):
    def infer(self, inputs: list[Any]) -> list[Any]:
        return [_facts_of(photo.image) for photo in inputs]


class OrderFacts(ModelHandler[Order, Any]):
    def infer(self, inputs: list[Order]) -> list[Any]:
        return [[*_facts_of(order.image), order.n, order.note] for order in inputs]


def _facts_of(upload: Upload) -> list[Any]:
    return [upload.content.decode("latin-1"), upload.content_type, upload.name]


@pytest.fixture(scope="module")
def uploads() -> Iterator[TestClient]:
    server = ModelServer().add("m", Facts).add("order", OrderFacts)
    server.add("small", Facts, limits=Limits(max_body_bytes=100))
    with TestClient(server.build()) as client:
        yield client


def test_a_file_is_taken_from_a_form(uploads: TestClient) -> None:
    answer = uploads.post(PREDICT, files={"image": ("cat.gif", b"GIF\xff", "image/gif")})

    assert answer.json() == ["GIF\xff", "image/gif", "cat.gif"]


def test_a_single_file_is_taken_as_the_raw_body(uploads: TestClient) -> None:
    answer = uploads.post(PREDICT, content=b"GIF\xff", headers={"Content-Type": "image/gif"})

    assert answer.json() == ["GIF\xff", "image/gif", None]


def test_fields_stand_beside_a_file(uploads: TestClient) -> None:
    answer = uploads.post(
        "/v1/models/order/predict",
        files={"image": ("a", b"x", "image/gif")},
        data={"n": "3", "note": "ä"},
    )

    assert answer.json() == ["x", "image/gif", "a", 3, "ä"]


@pytest.mark.parametrize(
    "sent",
    [
        {"files": {"picture": ("a", b"canary")}},
        {"files": {"image": ("a", b"canary")}, "data": {"n": "canary"}},
        {"files": [("image", ("a", b"canary")), ("image", ("b", b"canary"))]},
        {"files": {"n": (None, "3")}, "data": {"image": "canary"}},
    ],
)
def test_a_form_that_does_not_fit_is_a_validation_error(
    uploads: TestClient, sent: dict[str, Any]
) -> None:
    answer = uploads.post("/v1/models/order/predict", **sent)

    error_of(answer, 422, "validation_error")
    assert "canary" not in answer.text


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("order", "image/gif"),
        ("order", "application/x-www-form-urlencoded"),
        ("m", "application/x-www-form-urlencoded"),
        ("m", ""),
    ],
)
def test_what_is_no_form_is_refused(uploads: TestClient, name: str, content_type: str) -> None:
    answer = uploads.post(
        f"/v1/models/{name}/predict", content=b"x", headers={"Content-Type": content_type}
    )

    error_of(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=wrong"]
)
def test_a_form_that_cannot_be_read_is_a_bad_request(
    uploads: TestClient, content_type: str
) -> None:
    answer = uploads.post(PREDICT, content=b"canary", headers={"Content-Type": content_type})

    assert answer.status_code in (400, 422)
    error_of(answer, answer.status_code, answer.json()["error"]["code"])
    assert "canary" not in answer.text


@pytest.mark.parametrize("name", ["m", "order"])
def test_a_form_that_breaks_off_is_refused(uploads: TestClient, name: str) -> None:
    disposition = b'Content-Disposition: form-data; name="'
    image = b"--b\r\n" + disposition + b'image"; filename="f"\r\n\r\nGIF\r\n'
    note = b"--b\r\n" + disposition + b'note"\r\n\r\nhalf of it'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    for content in (image, image + note, image + note + b"\r\n--b"):
        answer = uploads.post(f"/v1/models/{name}/predict", content=content, headers=headers)

        error_of(answer, 400, "bad_request")


def test_a_dependency_may_read_the_form_before_the_model_does() -> None:
    seen: list[Any] = []

    async def look(request: Request) -> None:
        seen.extend(await request.form())

    app = ModelServer().add("m", Facts, dependencies=[Depends(look)]).build()
    with TestClient(app) as client:
        answer = client.post(PREDICT, files={"image": ("cat.gif", b"GIF", "image/gif")})

    assert seen == ["image"]
    assert answer.status_code == 200, answer.text


def test_a_form_of_a_thousand_parts_is_refused(uploads: TestClient) -> None:
    parts = [(f"part{number}", ("a", b"x")) for number in range(1000)]

    error_of(uploads.post(PREDICT, files=parts), 400, "bad_request")


@pytest.mark.parametrize("raw", [True, False])
def test_a_file_over_the_limit_is_refused(uploads: TestClient, raw: bool) -> None:
    sent: dict[str, Any] = (
        {"content": b"x" * 101, "headers": {"Content-Type": "image/gif"}}
        if raw
        else {"files": {"image": ("a", b"x" * 101)}}
    )

    error_of(uploads.post("/v1/models/small/predict", **sent), 413, "body_too_large")


def test_a_file_that_is_not_announced_as_too_large_is_refused_when_it_is(
    uploads: TestClient,
) -> None:
    answer = uploads.post(
        "/v1/models/small/predict",
        content=(b"x" * 50 for _ in range(3)),
        headers={"Content-Type": "image/gif"},
    )

    error_of(answer, 413, "body_too_large")


def test_uploads_stand_in_openapi_as_forms_and_answers_as_bytes(uploads: TestClient) -> None:
    app = app_of(Photo, Binary, lambda photos: [Binary(p.image.content) for p in photos])

    operation = app.openapi()["paths"][PREDICT]["post"]

    assert list(operation["requestBody"]["content"]) == ["multipart/form-data"]
    assert operation["responses"]["200"]["content"]["*/*"]["schema"]["format"] == "binary"
