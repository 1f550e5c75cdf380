"""Whatever sinks do costs no answer: full queues, errors, hangs, and what the end leaves."""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.http.waiting import until
from tests.observability.reading import scrape
from tests.records.sinks import Doubling, ListSink, double, serving_doubles, state_of

from mlserve import (
    ModelHandler,
    ModelServer,
    ServerSettings,
)
from mlserve.records import InferenceRecord
from mlserve.testing import running


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


class Echo(ModelHandler[str, str]):
    def infer(self, inputs: list[str]) -> list[str]:
        return inputs


def test_payloads_that_find_no_room_are_dropped_before_the_queue_is_full() -> None:
    sink = ListSink(holds=True, keep_payloads=True, max_queue_bytes=3000, batch_size=1)

    with running(ModelServer(sinks=[sink]).add("echo", Echo)) as client:
        client.post("/v1/models/echo/predict", json="first")
        assert sink.began.wait(10)
        for _ in range(3):
            client.post("/v1/models/echo/predict", json="x" * 1000)
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


def test_a_redaction_that_hangs_costs_no_answer_and_keeps_one_thread() -> None:
    may_end, n_calls = threading.Event(), 0

    def hang(record: InferenceRecord) -> InferenceRecord:
        nonlocal n_calls
        n_calls += 1
        may_end.wait(30)
        return record

    sink = ListSink(redact=hang, write_timeout_s=0.05, batch_size=1)

    with running(serving_doubles(sink, settings=ServerSettings(flush_s=0.05))) as client:
        for value in range(5):
            assert double(client, value) == 2 * value
        until(lambda: state_of(client)["state"] == "failing")
    may_end.set()

    assert n_calls == 1
    assert sink.records == []


def test_a_sink_whose_close_raises_is_said_and_the_server_ends_as_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unclosable(ListSink):
        async def close(self) -> None:
            raise OSError("no space left on device")

    sink = Unclosable()

    with running(serving_doubles(sink)) as client:
        double(client)

    assert len(sink.records) == 1
    assert "sink.close.failed" in [record.message for record in caplog.records]
