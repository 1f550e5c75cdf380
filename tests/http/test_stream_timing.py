"""Streams and time: pings, deadlines, and places that are taken."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.http.answers import error_of, events_of

from mlserve import Limits, ModelHandler, ModelServer, Replicas, ServerSettings

STREAM = "/v1/models/m/stream"


class Pausing(ModelHandler[str, int]):
    """Yields one chunk, waits until it is told to go on, yields another."""

    go_on: threading.Event
    pause_first = False

    def stream(self, item: str) -> Iterator[int]:
        if self.pause_first:
            assert self.go_on.wait(10)
        yield 1
        assert self.go_on.wait(10)
        yield 2


def pausing(*, first: bool = False) -> tuple[threading.Event, type[Pausing]]:
    event = threading.Event()
    return event, type("PausingHere", (Pausing,), {"go_on": event, "pause_first": first})


def test_silence_is_filled_with_pings() -> None:
    go_on, handler = pausing()
    server = ModelServer(settings=ServerSettings(ping_s=0.02)).add("m", handler)
    timer = threading.Timer(0.15, go_on.set)

    with TestClient(server.build()) as client:
        timer.start()
        answer = client.post(STREAM, json="")

    assert answer.text.count(": ping\n\n") >= 3
    assert events_of(answer) == ["1", "2", "[DONE]"]


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(stream_timeout_s=0.1), "within 0.1 s (stage: stream)"),
        (Limits(idle_s=0.1), "within 0.1 s (stage: stream)"),
        (Limits(idle_s=0.15, first_chunk_s=0.05), "within 0.15 s"),
    ],
)
@pytest.mark.parametrize("ping_s", [0.02, 15.0])
def test_a_stream_that_takes_too_long_ends_with_an_error_event(
    limits: Limits, text: str, ping_s: float
) -> None:
    go_on, handler = pausing()
    settings = ServerSettings(ping_s=ping_s)
    server = ModelServer(settings=settings).add("m", handler, limits=limits)

    with TestClient(server.build()) as client:
        events = events_of(client.post(STREAM, json=""))
        go_on.set()

    error = json.loads(events[1])["error"]
    assert (events[0], error["code"], events[2:]) == ("1", "deadline_exceeded", ["[DONE]"])
    assert text in error["message"]


@pytest.mark.parametrize("limits", [Limits(first_chunk_s=0.1), Limits(stream_timeout_s=0.1)])
def test_a_first_chunk_that_takes_too_long_is_a_504(limits: Limits) -> None:
    go_on, handler = pausing(first=True)

    with TestClient(ModelServer().add("m", handler, limits=limits).build()) as client:
        answer = client.post(STREAM, json="")
        go_on.set()

    error_of(answer, 504, "deadline_exceeded")


def test_the_timeout_header_shortens_a_stream() -> None:
    go_on, handler = pausing()

    with TestClient(ModelServer().add("m", handler).build()) as client:
        events = events_of(client.post(STREAM, json="", headers={"X-Request-Timeout": "0.1"}))
        go_on.set()

    assert json.loads(events[1])["error"]["code"] == "deadline_exceeded"


def test_a_place_for_one_stream_lets_the_next_wait_and_predictions_pass() -> None:
    go_on, handler = pausing()

    class Both(handler):  # type: ignore[misc,valid-type]  # a class of this test's own event
        def infer(self, inputs: list[str]) -> list[int]:
            return [7 for _ in inputs]

    server = ModelServer().add("m", Both, replicas=Replicas(max_streams=1))
    model = server.model_for("m")

    async def scenario() -> tuple[Any, int, list[Any]]:
        async with server.started():
            first = model.stream("")
            head = await anext(first)
            second = model.stream("")
            waiting = asyncio.ensure_future(anext(second))
            predicted = await model.predict("")
            n_queued = model.statistics().queued
            go_on.set()
            rest = [head, *[chunk async for chunk in first], await waiting]
            rest += [chunk async for chunk in second]
            return predicted, n_queued, rest

    predicted, n_queued, chunks = asyncio.run(asyncio.wait_for(scenario(), 10))

    assert predicted == 7
    assert n_queued == 1
    assert chunks == [1, 2, 1, 2]
