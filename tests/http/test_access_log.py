"""One line per inference: these facts, and nothing that a client sent."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from tests.http.waiting import until

from mlserve import Call, ModelHandler, ModelServer, ServerSettings, Upload
from mlserve.testing import running

CANARY = "canary-4711"
KEYS = [
    "request_id",
    "model",
    "version",
    "status",
    "code",
    "bytes_in",
    "bytes_out",
    "total_ms",
    "queue_ms",
    "preprocess_ms",
    "infer_ms",
    "postprocess_ms",
    "batch_size",
    "chunks",
    "tokens",
]


class Noting(ModelHandler[str, str]):
    def preprocess(self, request: str, call: Call) -> str:
        call.annotate(n_characters=len(request))
        return request

    def infer(self, inputs: list[str]) -> list[str]:
        if "break" in inputs:
            raise RuntimeError
        return inputs

    def stream(self, item: str, call: Call) -> Iterator[str]:
        yield from item
        call.annotate(finish="stop")


@pytest.fixture
def client(caplog: pytest.LogCaptureFixture) -> Iterator[TestClient]:
    with (
        caplog.at_level(logging.INFO),
        TestClient(ModelServer().add("m", Noting, version="v2").build()) as client,
    ):
        yield client


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        json.loads(record.getMessage())
        for record in caplog.records
        if record.name == "mlserve.access"
    ]


def test_a_prediction_leaves_one_line_with_these_facts(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.post("/v2/models/m/predict", json="abc", headers={"X-Request-Id": "mine"})

    (line,) = lines_of(caplog)
    assert list(line) == [*KEYS, "n_characters"]
    expected = {
        "request_id": "mine",
        "model": "m",
        "version": "v2",
        "status": 200,
        "code": None,
        "bytes_in": 5,
        "bytes_out": 5,
        "batch_size": 1,
        "chunks": 0,
        "tokens": 0,
        "n_characters": 3,
    }
    assert {key: line[key] for key in expected} == expected
    assert line["total_ms"] > line["infer_ms"] > 0


def test_a_stream_leaves_one_line_when_it_has_ended(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.post("/models/m/stream", json="abcd")

    (line,) = lines_of(caplog)
    assert (line["status"], line["chunks"], line["finish"]) == (200, 4, "stop")
    assert line["bytes_out"] == len(answer.content)


def test_a_failure_leaves_one_line_with_its_code(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.post("/v2/models/m/predict", json="break")
    client.post("/v2/models/m/predict", json=1)
    client.post("/v2/models/m/predict", content=b"{", headers={"Content-Type": "text/plain"})
    client.get("/v2/models/m/predict")

    outcomes = [(line["status"], line["code"]) for line in lines_of(caplog)]
    assert outcomes[:3] == [
        (500, "model_error"),
        (422, "validation_error"),
        (415, "unsupported_media_type"),
    ]


def test_other_routes_leave_no_line(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/health", "/ready", "/v2/models", "/docs", "/nowhere"):
        client.get(path)

    assert lines_of(caplog) == []


def test_nothing_that_a_client_sent_gets_into_any_log(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="mlserve")
    headers = {"Authorization": f"Bearer {CANARY}", "Cookie": CANARY}
    client.post("/v2/models/m/predict", json=CANARY, headers=headers)
    client.post("/v2/models/m/stream", json=CANARY, headers=headers)
    client.post("/v2/models/m/predict", json=[CANARY], headers=headers)
    client.post(f"/v2/models/m/predict?key={CANARY}", content=CANARY.encode(), headers=headers)
    client.post("/v2/models/m/predict", json=CANARY, headers={"X-Request-Timeout": CANARY})
    client.post("/v2/models/m/predict", json=CANARY, headers={"X-Request-Id": f"{CANARY} x"})

    ours = [record for record in caplog.records if record.name.startswith("mlserve")]
    assert len(ours) >= 6
    assert CANARY not in str([vars(record) for record in ours])


def test_annotations_never_replace_the_facts(caplog: pytest.LogCaptureFixture) -> None:
    class Liar(ModelHandler[str, str]):
        def infer(self, inputs: list[str], calls: list[Call]) -> list[str]:
            for call in calls:
                call.annotate(status=0, model="other", thing=object(), note="kept")
            return inputs

    server = ModelServer().add("m", Liar)
    with caplog.at_level(logging.INFO), TestClient(server.build()) as client:
        answer = client.post("/v1/models/m/predict", json="")

    (line,) = lines_of(caplog)
    assert answer.status_code == 200
    assert (line["status"], line["model"], line["note"]) == (200, "m", "kept")


def test_the_log_can_be_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    server = ModelServer(settings=ServerSettings(access_log=False)).add("m", Noting)

    with caplog.at_level(logging.INFO), TestClient(server.build()) as client:
        client.post("/v1/models/m/predict", json="abc")

    assert lines_of(caplog) == []


@pytest.mark.slow
def test_a_stream_whose_client_leaves_is_logged_as_such(caplog: pytest.LogCaptureFixture) -> None:
    class Endless(ModelHandler[str, str]):
        def stream(self, item: str) -> Iterator[str]:
            pause = threading.Event()
            while True:
                yield item
                pause.wait(0.01)

    server = ModelServer().add("m", Endless)
    with caplog.at_level(logging.INFO), running(server) as client:
        with client.stream("POST", "/v1/models/m/stream", json="x") as answer:
            next(answer.iter_lines())
        until(lambda: bool(lines_of(caplog)))

    (line,) = lines_of(caplog)
    assert (line["status"], line["code"]) == (200, "client_closed_request")


@pytest.mark.slow
def test_a_prediction_whose_client_leaves_is_logged_as_such(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, released = threading.Event(), threading.Event()

    class Slow(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            begun.set()
            assert released.wait(10)
            return inputs

    async def leave(base_url: str) -> None:
        async with httpx2.AsyncClient(base_url=base_url) as client:
            request = asyncio.ensure_future(client.post("/v1/models/m/predict", json=""))
            assert await asyncio.to_thread(begun.wait, 5)
            request.cancel()

    with caplog.at_level(logging.INFO), running(ModelServer().add("m", Slow)) as client:
        asyncio.run(leave(str(client.base_url)))
        until(lambda: bool(lines_of(caplog)))
        released.set()

    (line,) = lines_of(caplog)
    assert (line["status"], line["code"]) == (499, "client_closed_request")


@pytest.mark.parametrize("form", [True, False])
def test_the_bytes_of_an_upload_are_counted(caplog: pytest.LogCaptureFixture, form: bool) -> None:
    class File(BaseModel):
        file: Upload

    class Sized(ModelHandler[File, int]):
        def infer(self, inputs: list[File]) -> list[int]:
            return [len(item.file.content) for item in inputs]

    with caplog.at_level(logging.INFO), TestClient(ModelServer().add("m", Sized).build()) as client:
        if form:
            answer = client.post("/v1/models/m/predict", files={"file": b"x" * 1000})
        else:
            headers = {"Content-Type": "image/png"}
            answer = client.post("/v1/models/m/predict", content=b"x" * 1000, headers=headers)

    [line] = [record for record in caplog.records if record.name == "mlserve.access"]
    assert answer.json() == 1000
    assert json.loads(line.getMessage())["bytes_in"] == int(
        answer.request.headers["content-length"]
    )


def test_an_annotation_that_cannot_be_written_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Circular(ModelHandler[str, str]):
        def preprocess(self, request: str, call: Call) -> str:
            ring: list[Any] = []
            ring.append(ring)
            call.annotate(ring=ring)
            return request

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

    server = ModelServer().add("m", Circular)
    with caplog.at_level(logging.INFO), TestClient(server.build()) as client:
        answer = client.post("/v1/models/m/predict", json="a")

    [line] = [record for record in caplog.records if record.name == "mlserve.access"]
    assert answer.json() == "a"
    assert json.loads(line.getMessage()).keys() == set(KEYS)
