"""Records over HTTP: what sinks get, and that whatever they do costs no answer."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import pytest
from fastapi import Depends, HTTPException
from tests.http.waiting import until
from tests.observability.reading import scrape
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
    ServerSettings,
)
from mlserve.records import CallbackSink, EveryN, InferenceRecord, SinkOptions
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


def test_a_full_queue_drops_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    sink = ListSink(holds=True, max_queue=3, batch_size=1)

    with running(serving_doubles(sink)) as client:
        before = scrape(client).value("mlserve_records_total", sink="ListSink", outcome="dropped")
        double(client)
        assert sink.began.wait(10)
        for _ in range(5):
            double(client)
        counts = state_of(client)
        after = scrape(client).value("mlserve_records_total", sink="ListSink", outcome="dropped")
        sink.release()

    assert (counts["waiting"], counts["dropped"]) == (4, 2)
    assert after is not None
    assert after - (before or 0) == 2
    assert len(sink.records) == 4
    assert [r.message for r in caplog.records].count("records.dropped") == 1


def test_payloads_that_find_no_room_are_dropped_before_the_queue_is_full() -> None:
    sink = ListSink(holds=True, keep_payloads=True, max_queue_bytes=3000, batch_size=1)

    with running(told(sink)) as client:
        client.post("/v1/models/tell/predict", json="first")
        assert sink.began.wait(10)
        for _ in range(3):
            client.post("/v1/models/tell/predict", json="x" * 1000)
        counts = state_of(client)
        sink.release()

    assert (counts["waiting"], counts["dropped"]) == (2, 2)


def test_a_sink_that_raises_is_tried_again_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "mlserve")
    sink, other = ListSink(), ListSink(name="other")

    with running(serving_doubles(sink, other)) as client:
        sink.n_failures = 1
        double(client)
        until(lambda: len(other.records) == 1)
        until(lambda: state_of(client)["state"] == "failing")
        until(lambda: len(sink.records) == 1)
        assert state_of(client) == {
            "name": "ListSink", "state": "ready", "waiting": 0,
            "written": 1, "dropped": 0, "failed": 0,
        }  # fmt: skip

    said = [record.message for record in caplog.records]
    assert (said.count("sink.write.failed"), said.count("sink.recovered")) == (1, 1)


def test_a_batch_that_fails_each_time_is_given_up_and_counted() -> None:
    sink = ListSink(max_tries=2)

    with running(serving_doubles(sink)) as client:
        sink.n_failures = 2
        double(client)
        until(lambda: state_of(client)["failed"] == 1)
        assert client.get("/ready").status_code == 200
        double(client)
        until(lambda: len(sink.records) == 1)

    assert sink.n_calls == 3


class Raising(ListSink):
    def __init__(self, error: BaseException) -> None:
        super().__init__(max_tries=1)
        self._error = error

    async def write(self, records: Sequence[InferenceRecord]) -> None:
        raise self._error


@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(1), asyncio.CancelledError(), GeneratorExit()]
)
def test_whatever_a_sink_raises_costs_no_answer_and_no_other_sink(error: BaseException) -> None:
    bad, good = Raising(error), ListSink()

    with running(serving_doubles(bad, good)) as client:
        for value in range(3):
            assert double(client, value) == 2 * value
        until(lambda: state_of(client, "Raising")["failed"] == 3)
        until(lambda: len(good.records) == 3)


def test_a_sink_that_never_returns_costs_no_answer_and_no_other_sink() -> None:
    hanging = ListSink(holds=True, name="hanging", write_timeout_s=0.1, max_queue=5, batch_size=1)
    good = ListSink()

    with running(serving_doubles(hanging, good, settings=ServerSettings(flush_s=0.1))) as client:
        for value in range(20):
            double(client, value)
        until(lambda: len(good.records) == 20)
        until(lambda: state_of(client, "hanging")["state"] == "failing")
        assert client.get("/ready").status_code == 200
        started = time.monotonic()

    assert time.monotonic() - started < 5
    assert hanging.is_closed


def test_a_sink_that_ignores_that_it_is_cancelled_holds_up_neither_requests_nor_the_end() -> None:
    class Stubborn(ListSink):
        async def write(self, records: Sequence[InferenceRecord]) -> None:
            self.n_calls += 1
            self.began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.Event().wait()

    sink = Stubborn(write_timeout_s=0.05, batch_size=1)

    with running(serving_doubles(sink, settings=ServerSettings(flush_s=0.05))) as client:
        for value in range(5):
            double(client, value)
        until(lambda: state_of(client, "Stubborn")["state"] == "failing")
        assert double(client, 5) == 10

    assert sink.n_calls == 1  # nothing is begun beside a call that still runs


def test_a_sink_that_does_not_open_gets_its_records_once_it_does() -> None:
    sink = ListSink()
    sink.n_failures = 1

    with running(serving_doubles(sink)) as client:
        double(client)
        assert client.get("/ready").status_code == 200
        until(lambda: len(sink.records) == 1)


def test_a_server_that_needs_a_sink_is_not_ready_while_it_fails() -> None:
    sink = ListSink(required=True, max_tries=1)

    with running(serving_doubles(sink)) as client:
        until(lambda: client.get("/ready").status_code == 200)
        sink.n_failures = 1
        assert double(client) == 2
        until(lambda: client.get("/ready").status_code == 503)
        body = client.get("/ready").json()
        assert double(client) == 2
        until(lambda: client.get("/ready").status_code == 200)

    assert body["error"]["code"] == "unavailable"
    assert "Sink `ListSink` does not write" in body["error"]["message"]
    assert body["sinks"][0]["state"] == "failing"


def test_what_waits_is_written_at_the_end_after_the_models_have_drained() -> None:
    class Slow(Doubling):
        def infer(self, inputs: list[float]) -> list[float]:
            began.set()
            assert may_end.wait(10)
            return super().infer(inputs)

    began, may_end = threading.Event(), threading.Event()
    sink = ListSink(max_wait_s=3600)

    server = ModelServer(sinks=[sink]).add("double", Slow)

    with running(server) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(double, client)
        assert began.wait(10)
        server.registry.begin_drain()
        may_end.set()
        assert asked.result(10) == 2

    assert [record.status for record in sink.records] == [200]
    assert sink.is_closed


def test_what_is_not_written_in_time_at_the_end_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = ListSink(holds=True, batch_size=1)

    with running(serving_doubles(sink, settings=ServerSettings(flush_s=0.05))) as client:
        for value in range(3):
            double(client, value)
        assert sink.began.wait(10)

    [lost] = [record for record in caplog.records if record.message == "records.lost"]
    assert vars(lost)["n_records"] == 3


def test_a_sink_that_fails_at_the_end_is_not_waited_for() -> None:
    sink = ListSink(batch_size=1)

    with running(serving_doubles(sink, settings=ServerSettings(flush_s=30))) as client:
        sink.n_failures = 1000
        for value in range(3):
            double(client, value)
        until(lambda: state_of(client)["state"] == "failing")
        started = time.monotonic()

    assert time.monotonic() - started < 10
    assert sink.n_calls <= 4


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


def test_a_callback_runs_in_a_thread_of_its_own_and_is_called_once_for_each_record() -> None:
    got: list[tuple[str, str]] = []

    def note(record: InferenceRecord) -> None:
        got.append((record.request_id, threading.current_thread().name))
        if record.request_id == "b":
            raise ValueError(record.request_id)

    with running(serving_doubles(CallbackSink(note))) as client:
        for name in "abc":
            double(client, request_id=name)
        until(lambda: state_of(client, "CallbackSink")["waiting"] == 0)
        counts = state_of(client, "CallbackSink")

    assert got == [(name, "mlserve-callback-note") for name in "abc"]
    assert (counts["written"], counts["failed"]) == (2, 1)


def test_an_async_callback_runs_on_the_event_loop_of_the_server() -> None:
    loops: set[asyncio.AbstractEventLoop] = set()

    class Note:
        async def __call__(self, record: InferenceRecord) -> None:
            loops.add(asyncio.get_running_loop())

    server = serving_doubles(CallbackSink(Note()))
    app = server.build()

    @app.get("/loop")
    async def note_loop() -> None:
        loops.add(asyncio.get_running_loop())

    with running(app) as client:
        double(client)
        client.get("/loop")

    assert len(loops) == 1


def test_a_callback_that_hangs_costs_no_answer_and_keeps_one_thread() -> None:
    may_end, n_calls = threading.Event(), 0

    def hang(record: InferenceRecord) -> None:
        nonlocal n_calls
        n_calls += 1
        may_end.wait(30)

    sink = CallbackSink(hang, options=SinkOptions(write_timeout_s=0.05, max_queue=3))

    with running(serving_doubles(sink, settings=ServerSettings(flush_s=0.05))) as client:
        for value in range(10):
            assert double(client, value) == 2 * value
        until(lambda: state_of(client, "CallbackSink")["state"] == "failing")
        counts = state_of(client, "CallbackSink")
        threads = [t.name for t in threading.enumerate() if t.name == "mlserve-callback-hang"]
    may_end.set()

    assert n_calls == 1
    assert len(threads) == 1
    assert counts["dropped"] >= 6


def test_every_n_records_of_a_model_it_is_called() -> None:
    got: list[tuple[str, str]] = []
    sink = EveryN(3, lambda record: got.append((record.model, record.request_id)))
    server = serving_doubles(sink).add("tell", Telling)

    with running(server) as client:
        for number in range(7):
            double(client, request_id=f"double-{number}")
            client.post(
                "/v1/models/tell/predict", json="x", headers={"X-Request-Id": f"tell-{number}"}
            )

    assert sorted(got) == [
        ("double", "double-2"),
        ("double", "double-5"),
        ("tell", "tell-2"),
        ("tell", "tell-5"),
    ]


def test_while_it_is_at_work_records_are_counted_and_nothing_is_dropped() -> None:
    began, may_end = threading.Event(), threading.Event()
    got: list[str] = []

    def retrain(record: InferenceRecord) -> None:
        got.append(record.request_id)
        began.set()
        assert may_end.wait(10)
        raise ValueError("no data")

    options = SinkOptions(max_wait_s=0.0, max_queue=1, batch_size=1)

    with running(serving_doubles(EveryN(2, retrain, options=options))) as client:
        for number in range(2):
            double(client, request_id=str(number))
        assert began.wait(10)
        for number in range(2, 6):
            double(client, request_id=str(number))
            until(lambda: state_of(client, "EveryN")["waiting"] == 0)
        may_end.set()

    assert got == ["1", "3", "5"]
