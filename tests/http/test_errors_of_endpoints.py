"""Users' own endpoints and dependencies in a built application: our body, a usable connection."""

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel
from tests.http.answers import error_of

from mlserve import InvalidInputError, Model, ModelServer, QueueFullError, ServerSettings
from mlserve.testing import EchoHandler, running

SECRET = "/srv/secret/weights.safetensors"  # noqa: S105 - a path, which answers must not show


class Form(BaseModel):
    age: int


def broken_dependency() -> None:
    raise RuntimeError(SECRET)


def make_app() -> FastAPI:
    server = ModelServer(settings=ServerSettings(max_body_bytes=1000)).add("echo", EchoHandler)
    app = server.build()

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError(SECRET)

    @app.get("/broken-dependency", dependencies=[Depends(broken_dependency)])
    async def dependent() -> None:
        """Never reached."""

    @app.post("/form")
    async def form(form: Form) -> int:
        return form.age

    @app.get("/raise/{status}")
    async def raise_status(status: int) -> None:
        raise HTTPException(status, headers={"X-Mine": "yes"})

    @app.get("/detail")
    async def detail() -> None:
        raise HTTPException(409, {"what": ["any", "JSON"]})

    @app.get("/odd")
    async def odd() -> None:
        raise HTTPException(499, {"what": ["any", "JSON"]})

    @app.get("/ours/{kind}")
    async def ours(kind: str) -> None:
        raise QueueFullError("m", 3) if kind == "full" else InvalidInputError("`kind` is bad.")

    @app.post("/on-the-queue")
    async def on_the_queue(
        text: str, model: Annotated[Model, Depends(server.model("echo"))]
    ) -> Any:
        return await model.predict({"text": text})

    return app


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(make_app()) as client:
        yield client


@pytest.mark.parametrize("path", ["/broken", "/broken-dependency"])
def test_an_unknown_exception_is_an_internal_error_without_its_text(
    client: TestClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.get(path)

    error_of(answer, 500, "internal_error")
    assert SECRET not in answer.text
    assert SECRET in caplog.text
    assert answer.headers["x-request-id"] in str([vars(record) for record in caplog.records])


@pytest.mark.slow
def test_the_connection_is_usable_after_an_unknown_exception() -> None:
    with running(make_app()) as client:
        answers = [client.get(path) for path in ("/broken", "/broken-dependency", "/health")]
        connections = {
            answer.extensions["network_stream"].get_extra_info("client_addr") for answer in answers
        }

    assert [answer.status_code for answer in answers] == [500, 500, 200]
    assert len(connections) == 1


@pytest.mark.parametrize("body", [{"age": SECRET}, {"years": SECRET}, [SECRET], SECRET])
def test_a_validation_error_has_our_body_and_nothing_of_the_input(
    client: TestClient, body: Any
) -> None:
    answer = client.post("/form", json=body)

    error_of(answer, 422, "validation_error")
    assert answer.json()["detail"][0]["loc"][0] == "body"
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "body", [b'{"age": NaN}', b'{"age": "\\ud800"}', b'{"age": Infinity}', b'{"age"', b"\xff"]
)
def test_bodies_that_are_odd_json_are_never_an_error_of_the_server(
    client: TestClient, body: bytes
) -> None:
    answer = client.post("/form", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code in (400, 422)
    error_of(answer, answer.status_code, answer.json()["error"]["code"])


def test_ten_thousand_wrong_items_make_a_small_answer(client: TestClient) -> None:
    answer = client.post("/form", json={"age": ["x" * 5] * 100})

    error_of(answer, 422, "validation_error")


@pytest.mark.parametrize("n_bytes", [1001, 1_000_000])
def test_a_body_over_the_servers_limit_is_refused(client: TestClient, n_bytes: int) -> None:
    announced = client.post("/form", content=b"x" * n_bytes)
    chunked = client.post("/form", content=(b"x" * 1000 for _ in range(n_bytes // 1000 + 1)))

    error_of(announced, 413, "body_too_large")
    error_of(chunked, 413, "body_too_large")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "bad_request"),
        (401, "unauthorized"),
        (403, "forbidden"),
        (404, "not_found"),
        (409, "conflict"),
        (418, "error"),
        (429, "rate_limited"),
        (499, "error"),
        (500, "internal_error"),
        (503, "unavailable"),
        (599, "internal_error"),
    ],
)
def test_an_http_exception_keeps_its_status_and_headers(
    client: TestClient, status: int, code: str
) -> None:
    answer = client.get(f"/raise/{status}")

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.headers["x-mine"] == "yes"


@pytest.mark.parametrize("status", [204, 304])
def test_an_http_exception_of_a_status_without_a_body_has_none(
    client: TestClient, status: int
) -> None:
    answer = client.get(f"/raise/{status}")

    assert (answer.status_code, answer.content) == (status, b"")
    assert answer.headers["x-mine"] == "yes"


def test_an_http_exception_whose_detail_is_no_text_has_our_body(client: TestClient) -> None:
    answer = client.get("/detail")

    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "conflict"


def test_errors_of_mlserve_are_answered_from_own_endpoints(client: TestClient) -> None:
    error_of(client.get("/ours/full"), 503, "queue_full")
    error_of(client.get("/ours/bad"), 422, "invalid_input")


def test_own_endpoints_use_the_models_queue(client: TestClient) -> None:
    answer = client.post("/on-the-queue", params={"text": "hello"})

    assert answer.json() == {"text": "hello"}


class OutOfTeaError(Exception):
    """An exception of the user's own."""


def out_of_tea() -> None:
    raise OutOfTeaError


@pytest.mark.parametrize("on", [OutOfTeaError, Exception])
def test_an_own_handler_of_exceptions_answers_those_of_own_endpoints(on: type[Exception]) -> None:
    app = make_app()

    @app.exception_handler(on)
    async def no_tea(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"tea": None}, 418)

    app.get("/tea")(out_of_tea)

    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/tea")

    assert (answer.status_code, answer.json()) == (418, {"tea": None})


def test_an_own_handler_of_an_own_exception_answers_it_on_a_models_route_too() -> None:
    server = ModelServer().add("echo", EchoHandler, dependencies=[Depends(out_of_tea)])
    app = server.build()

    @app.exception_handler(OutOfTeaError)
    async def no_tea(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"tea": None}, 418)

    with TestClient(app) as client:
        answer = client.post("/v1/models/echo/predict", json={"text": ""})

    assert (answer.status_code, answer.json()) == (418, {"tea": None})


def test_an_http_exception_of_an_unknown_status_and_a_detail_that_is_no_text_is_answered(
    client: TestClient,
) -> None:
    answer = client.get("/odd")

    assert answer.status_code == 499
    assert answer.json()["error"]["code"] == "error"
