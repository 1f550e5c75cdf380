"""Records over HTTP: which requests they are of, and what sinks get."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, HTTPException
from tests.http.waiting import until
from tests.records.sinks import Doubling, ListSink, double, serving_doubles, state_of

from mlserve import (
    Batching,
    Call,
    InvalidInputError,
    Limits,
    Model,
    ModelHandler,
    ModelServer,
    Replicas,
)
from mlserve.records import InferenceRecord
from mlserve.testing import running


class Telling(ModelHandler[str, str]):
    def preprocess(self, request: str, call: Call) -> str:
        call.annotate(language="en", prompt_tokens=len(request))
        return request

    def infer(self, inputs: list[str]) -> list[Any]:
        return [self.answer(text) for text in inputs]

    def answer(self, text: str) -> Any:
        if text == "refuse":
            return InvalidInputError("No.")
        if text == "break":
            raise OSError("weights are gone")
        return text.upper()

    def stream(self, item: str) -> Iterator[str]:
        yield from item.split()


def told(*sinks: Any, **options: Any) -> ModelServer:
    return ModelServer(sinks=sinks).add("tell", Telling, **options)


def test_every_request_that_reached_the_model_is_recorded_whatever_its_outcome() -> None:
    sink = ListSink()

    with running(told(sink)) as client:
        for text in ("hello", "refuse", "break", 7):
            client.post("/v1/models/tell/predict", json=text)
        client.post("/v1/models/tell/predict", content=b"{", headers={"Content-Type": "text/csv"})
        client.post("/v1/models/other/predict", json="x")
        client.get("/health")

    assert [(r.status, r.code) for r in sink.records] == [
        (200, None),
        (422, "invalid_input"),
        (500, "model_error"),
        (422, "validation_error"),
        (415, "unsupported_media_type"),
    ]
    first = sink.records[0]
    assert (first.model, first.version, first.is_stream) == ("tell", "v1", False)
    assert first.annotations == {"language": "en", "prompt_tokens": 5}
    assert (first.tokens, first.batch_size, first.bytes_in, first.bytes_out) == (5, 1, 7, 7)
    assert 0 < first.infer_ms < first.total_ms


def test_who_has_no_right_or_finds_no_room_has_not_reached_the_model() -> None:
    def refuse() -> None:
        raise HTTPException(401)

    sink = ListSink()

    with running(told(sink, dependencies=[Depends(refuse)])) as client:
        assert client.post("/v1/models/tell/predict", json="x").status_code == 401

    assert sink.records == []


def test_a_stream_is_one_record_with_all_its_events() -> None:
    sink = ListSink(keep_payloads=True)

    with running(told(sink)) as client:
        client.post("/v1/models/tell/stream", json="a bc d")

    [record] = sink.records
    assert (record.is_stream, record.chunks, record.request) == (True, 3, '"a bc d"')
    assert json.loads(record.response or "") == ["a", "bc", "d"]


def test_calls_from_code_are_recorded_as_well() -> None:
    sink = ListSink()

    async def call() -> None:
        server = serving_doubles(sink)
        async with server.started():
            await server.model_for("double").predict(4)

    asyncio.run(call())

    assert [(r.status, r.batch_size) for r in sink.records] == [(200, 1)]
    assert sink.is_closed


def test_a_sink_of_one_model_gets_the_requests_of_no_other() -> None:
    of_all, of_one = ListSink(), ListSink(name="one")
    server = serving_doubles(of_all).add("tell", Telling, sinks=[of_one, of_all])

    with running(server) as client:
        double(client)
        client.post("/v1/models/tell/predict", json="x")

    assert [record.model for record in of_all.records] == ["double", "tell"]
    assert [record.model for record in of_one.records] == ["tell"]


def test_only_the_sink_that_keeps_payloads_gets_them_and_only_redacted() -> None:
    plain, keeping = ListSink(), ListSink(name="keeps", keep_payloads=True, redact=["text"])

    class Answer(ModelHandler[dict[str, str], dict[str, str]]):
        def infer(self, inputs: list[dict[str, str]]) -> list[dict[str, str]]:
            return inputs

    with running(ModelServer(sinks=[plain, keeping]).add("echo", Answer)) as client:
        client.post("/v1/models/echo/predict", json={"text": "my secret", "unit": "m"})

    assert (plain.records[0].request, plain.records[0].response) == (None, None)
    for text in (keeping.records[0].request, keeping.records[0].response):
        assert json.loads(text or "") == {"text": "[redacted]", "unit": "m"}


def test_a_function_redacts_each_record_and_what_it_breaks_on_is_never_written() -> None:
    def redact(record: InferenceRecord) -> InferenceRecord:
        if record.request_id == "bad":
            raise KeyError("text")
        return InferenceRecord(
            **{name: getattr(record, name) for name in record.__slots__} | {"key": "hidden"}
        )

    sink = ListSink(redact=redact)

    with running(serving_doubles(sink)) as client:
        for name in ("good", "bad", "fine"):
            double(client, request_id=name)
        until(lambda: state_of(client)["waiting"] == 0)
        counts = state_of(client)

    assert [(r.request_id, r.key) for r in sink.records] == [("good", "hidden"), ("fine", "hidden")]
    assert (counts["written"], counts["failed"]) == (2, 1)


def test_the_same_requests_are_sampled_each_time() -> None:
    names = [f"request-{number}" for number in range(60)]
    sink = ListSink(sample=0.5)

    for _ in range(2):
        with running(serving_doubles(sink)) as client:
            for name in names:
                double(client, request_id=name)

    ids = [record.request_id for record in sink.records]
    assert 10 < len(ids) / 2 < 50
    assert ids[: len(ids) // 2] == ids[len(ids) // 2 :]


def test_records_are_written_together_once_there_are_enough() -> None:
    sink = ListSink(batch_size=4, max_wait_s=3600)

    with running(serving_doubles(sink)) as client:
        for value in range(9):
            double(client, value)
        until(lambda: len(sink.batches) == 2)

    assert [len(batch) for batch in sink.batches] == [4, 4, 1]
    assert len({record.id for record in sink.records}) == 9


def test_records_are_written_once_they_have_waited_long_enough() -> None:
    sink = ListSink(max_wait_s=0.05)

    with running(serving_doubles(sink)) as client:
        double(client)
        until(lambda: len(sink.records) == 1)
        assert not sink.is_closed


def test_replicas_in_processes_and_batches_are_recorded_where_the_request_was_answered() -> None:
    sink = ListSink(keep_payloads=True)
    server = ModelServer(sinks=[sink])
    server.add("double", Doubling, replicas=Replicas(placement="process"), batching=Batching())

    with running(server) as client:
        double(client, 21)

    [record] = sink.records
    assert (record.status, record.batch_size, record.request, record.response) == (
        200, 1, "21", "42.0",
    )  # fmt: skip
    assert record.infer_ms > 0


def test_a_request_that_is_too_late_is_recorded() -> None:
    class Sleepy(Doubling):
        def infer(self, inputs: list[float]) -> list[float]:
            may_end.wait(10)
            return inputs

    may_end = threading.Event()
    sink = ListSink()
    server = ModelServer(sinks=[sink]).add("double", Sleepy, limits=Limits(timeout_s=0.1))

    with running(server) as client:
        answer = client.post("/v1/models/double/predict", json=1)
        may_end.set()

    assert answer.status_code == 504
    assert [(r.status, r.code) for r in sink.records] == [(504, "deadline_exceeded")]


def test_an_own_endpoint_is_recorded_by_what_it_asks_of_the_model() -> None:
    sink = ListSink()
    server = serving_doubles(sink)
    app = server.build()

    @app.post("/twice")
    async def twice(
        value: float, model: Annotated[Model, Depends(server.model("double"))]
    ) -> float:
        return float(await model.predict(await model.predict(value)))

    with running(app) as client:
        assert client.post("/twice", params={"value": 3}).json() == 12

    assert [record.status for record in sink.records] == [200, 200]
