"""Streams as server-sent events, seen through an in-process client."""

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

import pytest
from fastapi import Depends
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.requests import Request
from tests.http.answers import MEMBERS, error_of, events_of
from typing_extensions import TypedDict

from mlserve import (
    Cors,
    InvalidInputError,
    Limits,
    ModelHandler,
    ModelServer,
    Replicas,
    ServerSettings,
)
from mlserve.http.disconnect import DisconnectWatch
from mlserve.observability.access_log import JsonFormatter

STREAM = "/v1/models/m/stream"
SECRET = "/srv/secret/weights.safetensors"  # noqa: S105 - a path, which answers must not show


class Ask(BaseModel):
    n: int
    fail_at: int | None = None
    how: Literal["raise", "refuse", "nan", "wrong", "exit"] = "raise"


class Number(BaseModel):
    value: float


class Counter(ModelHandler[Ask, Number]):
    def stream(self, item: Ask) -> Iterator[Any]:
        for number in range(item.n):
            if number == item.fail_at:
                yield self._failing(item.how)
            yield Number(value=number)

    def _failing(self, how: str) -> Any:
        match how:
            case "refuse":
                raise InvalidInputError("`n` is unlucky.")
            case "raise":
                raise RuntimeError(SECRET)
            case "exit":
                raise SystemExit(SECRET)
            case "nan":
                return Number(value=float("nan"))
        return {"weights": SECRET}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(ModelServer().add("m", Counter).build()) as client:
        yield client


def test_each_chunk_is_an_event_and_the_last_one_is_done(client: TestClient) -> None:
    events = events_of(client.post(STREAM, json={"n": 3}))

    assert events == ['{"value":0.0}', '{"value":1.0}', '{"value":2.0}', "[DONE]"]


def test_a_stream_without_chunks_is_only_done(client: TestClient) -> None:
    assert events_of(client.post(STREAM, json={"n": 0})) == ["[DONE]"]


def test_the_alias_streams_too(client: TestClient) -> None:
    assert events_of(client.post("/models/m/stream", json={"n": 1}))[-1] == "[DONE]"


def test_get_takes_the_fields_as_query_parameters(client: TestClient) -> None:
    posted = client.post(STREAM, json={"n": 2, "fail_at": 1, "how": "refuse"})
    got = client.get(STREAM, params={"n": 2, "fail_at": 1, "how": "refuse"})

    assert events_of(got)[0] == events_of(posted)[0] == '{"value":0.0}'
    assert "unlucky" in events_of(got)[1]


def test_a_stream_says_that_nobody_may_hold_it_back(client: TestClient) -> None:
    headers = client.post(STREAM, json={"n": 1}).headers

    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert "content-length" not in headers
    assert "x-request-id" in headers
    assert "server-timing" in headers


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("raise", 500, "model_error"),
        ("refuse", 422, "invalid_input"),
        ("nan", 500, "model_error"),
        ("wrong", 500, "model_error"),
        ("exit", 500, "model_error"),
    ],
)
def test_an_error_before_the_first_chunk_has_its_own_status(
    client: TestClient, how: str, status: int, code: str
) -> None:
    answer = client.post(STREAM, json={"n": 3, "fail_at": 0, "how": how})

    error_of(answer, status, code)
    assert SECRET not in answer.text


@pytest.mark.parametrize("fail_at", [1, 2, 3])
@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("raise", "model_error"),
        ("refuse", "invalid_input"),
        ("nan", "model_error"),
        ("wrong", "model_error"),
        ("exit", "model_error"),
    ],
)
def test_a_later_error_is_an_event_and_done_comes_after_it_once(
    client: TestClient, fail_at: int, how: str, code: str
) -> None:
    answer = client.post(STREAM, json={"n": 9, "fail_at": fail_at, "how": how})

    events = events_of(answer)
    assert len(events) == fail_at + 2
    error = json.loads(events[-2])["error"]
    assert error.keys() == MEMBERS
    assert (error["code"], error["request_id"]) == (code, answer.headers["x-request-id"])
    assert events[-1] == "[DONE]"
    assert events.count("[DONE]") == 1
    assert SECRET not in answer.text


def test_only_what_was_read_to_be_written_counts_as_chunks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Late(ModelHandler[str, str]):
        async def stream(self, item: str) -> AsyncIterator[str]:
            for text in ("a", "b", "\ud800", *"cdefgh"):  # all are there before the first is read
                yield text

    app = ModelServer().add("m", Late).build()
    with caplog.at_level("INFO", "mlserve.access"), TestClient(app) as client:
        client.post(STREAM, json="x")

    assert '"chunks": 3' in "".join(map(JsonFormatter().format, caplog.records))


def test_an_async_generator_streams_and_fails_alike() -> None:
    closed: list[bool] = []

    class Remote(ModelHandler[Ask, Number]):
        async def stream(self, item: Ask) -> AsyncIterator[Number]:
            try:
                for number in range(item.n):
                    await asyncio.sleep(0)
                    if number == item.fail_at:
                        raise RuntimeError(SECRET)
                    yield Number(value=number)
            finally:
                closed.append(True)

    with TestClient(ModelServer().add("m", Remote).build()) as client:
        good = events_of(client.post(STREAM, json={"n": 2}))
        late = events_of(client.post(STREAM, json={"n": 3, "fail_at": 1}))
        early = client.post(STREAM, json={"n": 3, "fail_at": 0})

    assert good == ['{"value":0.0}', '{"value":1.0}', "[DONE]"]
    assert json.loads(late[1])["error"]["code"] == "model_error"
    error_of(early, 500, "model_error")
    assert closed == [True] * 3


def test_chunks_have_the_type_of_the_third_argument() -> None:
    class Words(ModelHandler[str, Number, list[str]]):
        def infer(self, inputs: list[str]) -> list[Number]:
            return [Number(value=len(text)) for text in inputs]

        def stream(self, item: str) -> Iterator[tuple[str, ...]]:
            for word in item.split():
                yield (word, word.upper())

    with TestClient(ModelServer().add("m", Words).build()) as client:
        events = events_of(client.post(STREAM, json="a\nb ä"))

    assert events == ['["a","A"]', '["b","B"]', '["ä","Ä"]', "[DONE]"]


def test_a_stream_that_is_no_generator_is_named() -> None:
    class Listing(ModelHandler[str, str]):
        def stream(self, item: str) -> Any:
            return "abc"

    with TestClient(ModelServer().add("m", Listing).build()) as client:
        answer = client.post(STREAM, json="")

    assert "yield" in error_of(answer, 500, "model_error")["message"]


def test_lists_may_be_streamed_without_a_generator() -> None:
    class Listing(ModelHandler[str, str]):
        def stream(self, item: str) -> list[str]:
            return ["a", "b"]

    with TestClient(ModelServer().add("m", Listing).build()) as client:
        assert events_of(client.post(STREAM, json="")) == ['"a"', '"b"', "[DONE]"]


def test_streams_are_never_compressed_and_other_answers_are() -> None:
    class Both(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            return [text * 2000 for text in inputs]

        def stream(self, item: str) -> Iterator[str]:
            yield item * 2000

    server = ModelServer(settings=ServerSettings(gzip_min_bytes=100)).add("m", Both)
    with TestClient(server.build()) as client:
        headers = {"Accept-Encoding": "gzip"}
        streamed = client.post(STREAM, json="a", headers=headers)
        predicted = client.post("/v1/models/m/predict", json="a", headers=headers)

    assert "content-encoding" not in streamed.headers
    assert events_of(streamed)[1:] == ["[DONE]"]
    assert predicted.headers["content-encoding"] == "gzip"
    assert predicted.json() == "a" * 2000


@pytest.mark.parametrize(
    "sent", [{"n": 1}, {"n": "x"}, {"n": 1, "fail_at": 0}], ids=["good", "invalid", "broken"]
)
def test_allowed_origins_may_read_streams_and_errors(sent: dict[str, Any]) -> None:
    cors = Cors(allow_origins=("https://app.example",))
    server = ModelServer(settings=ServerSettings(cors=cors)).add("m", Counter)

    with TestClient(server.build()) as client:
        answer = client.post(STREAM, json=sent, headers={"Origin": "https://app.example"})
        other = client.post(STREAM, json=sent, headers={"Origin": "https://evil.example"})
        preflight = client.options(
            STREAM,
            headers={
                "Origin": "https://app.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        )

    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in other.headers
    assert preflight.status_code == 200


@dataclass
class Words:
    text: str
    times: int = 1


class Phrase(TypedDict):
    text: str
    times: NotRequired[int]


class Parrot(ModelHandler[Words, str]):
    def stream(self, item: Words) -> Iterator[str]:
        yield from [item.text] * item.times


class Typed(ModelHandler[Phrase, str]):
    def stream(self, item: Phrase) -> Iterator[str]:
        yield from [item["text"]] * item.get("times", 1)


@pytest.mark.parametrize("handler", [Parrot, Typed])
def test_get_takes_the_fields_of_dataclasses_and_typed_dicts_too(handler: Any) -> None:
    app = ModelServer().add("m", handler).build()

    with TestClient(app) as client:
        twice = client.get(STREAM, params={"text": "a", "times": "2"})
        once = client.get(STREAM, params={"text": "a"})
        without = client.get(STREAM)
        shown = client.get("/openapi.json").json()["paths"][STREAM]["get"]["parameters"]

    assert events_of(twice) == ['"a"', '"a"', "[DONE]"]
    assert events_of(once) == ['"a"', "[DONE]"]
    assert error_of(without, 422, "validation_error")["param"] == "text"
    assert [(field["name"], field["required"]) for field in shown] == [
        ("text", True),
        ("times", False),
    ]


def test_a_get_with_a_body_streams_as_without() -> None:
    server = ModelServer().add("m", Counter, limits=Limits(max_body_bytes=1000))
    with TestClient(server.build()) as client:
        taken = client.request("GET", STREAM, params={"n": 2}, content=b"x" * 1000)
        chunks = (b"x" * 500 for _ in range(3))
        refused = client.request("GET", STREAM, params={"n": 2}, content=chunks)

    assert len(events_of(taken)) == 3
    error_of(refused, 413, "body_too_large")


def test_a_connection_that_breaks_while_it_is_watched_has_been_left() -> None:
    async def watch() -> None:
        left = asyncio.Event()

        async def broken() -> Any:
            raise OSError("gone")

        request = Request({"type": "http"}, broken)
        with DisconnectWatch(request, left.set, after_s=0):
            async with asyncio.timeout(10):
                await left.wait()

    asyncio.run(watch())


def test_a_stream_that_is_never_sent_is_closed_and_its_place_is_free() -> None:
    closed = threading.Event()

    class Endless(ModelHandler[str, int]):
        def stream(self, item: str) -> Iterator[int]:
            try:
                yield from itertools.count()
            finally:
                closed.set()

    async def failing() -> AsyncIterator[None]:
        yield
        raise RuntimeError("the commit failed")

    server = ModelServer().add(
        "m",
        Endless,
        dependencies=[Depends(failing, scope="function")],
        replicas=Replicas(max_streams=1),
    )
    with TestClient(server.build()) as client:
        answers = [client.post("/v1/models/m/stream", json="go") for _ in range(3)]
        was_closed = closed.wait(5)
        n_in_flight = server.model_for("m").statistics().in_flight

    assert [error_of(answer, 500, "internal_error")["type"] for answer in answers] == [
        "ServerError"
    ] * 3
    assert was_closed
    assert n_in_flight == 0
