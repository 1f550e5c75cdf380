"""Sinks that call a function."""

import asyncio
import threading

import pytest
from tests.http.waiting import until
from tests.records.sinks import Doubling, double, serving_doubles, state_of

from mlserve import (
    ServerSettings,
)
from mlserve.records import CallbackSink, EveryN, InferenceRecord, SinkOptions
from mlserve.testing import running


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


def test_a_callback_that_always_raises_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(record: InferenceRecord) -> None:
        raise ValueError(record.request_id)

    with running(serving_doubles(CallbackSink(fail))) as client:
        for value in range(20):
            double(client, value)
        until(lambda: state_of(client, "CallbackSink")["failed"] == 20)

    ours = [r.message for r in caplog.records if r.name.startswith("mlserve.records")]
    assert sorted(ours) == ["records.failed", "sink.write.failed"]


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
    server = serving_doubles(sink).add("tell", Doubling)

    with running(server) as client:
        for number in range(7):
            double(client, request_id=f"double-{number}")
            client.post(
                "/v1/models/tell/predict", json=1, headers={"X-Request-Id": f"tell-{number}"}
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
