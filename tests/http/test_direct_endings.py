"""What answers cost each other, a server that ends, and memory, on both ways of a prediction."""

import asyncio
import gc
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, field_serializer
from starlette.middleware import Middleware
from tests.http.direct_models import request_to
from tests.http.waiting import until
from tests.http.ways import DIRECT, ORDINARY, Answer, Place, places, read_answer

from mlserve import Batching, Call, ModelHandler, ModelServer, ServerSettings
from mlserve.http.connection import Connection
from mlserve.http.direct import DirectPrediction
from mlserve.http.exchange import Exchange
from mlserve.job import Job
from mlserve.records import InferenceRecord

pytestmark = pytest.mark.slow

JSON = b"Content-Type: application/json"
N = 12
LARGE = 1_000_000


class Held(ModelHandler[str, str]):
    """Holds what comes until it may go, or nobody waits for it."""

    batching = Batching(max_size=4)
    go_on: ClassVar[threading.Event] = threading.Event()

    def infer(self, inputs: list[str], calls: list[Call]) -> list[str]:
        until(lambda: self.go_on.is_set() or any(call.cancelled for call in calls))
        return inputs


def make_server(
    loops: list[asyncio.AbstractEventLoop], **settings: Any
) -> Callable[[list[InferenceRecord], list[Middleware]], ModelServer]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        yield

    def make(records: list[InferenceRecord], middleware: list[Middleware]) -> ModelServer:
        options = ServerSettings(**settings)
        return ModelServer(settings=options, middleware=middleware, lifespan=lifespan).add(
            "m", Held
        )

    return make


def post(text: str) -> bytes:
    return request_to("m", json.dumps(text).encode(), JSON)


@pytest.fixture(params=[DIRECT, ORDINARY])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    Held.go_on.clear()
    yield request.param
    Held.go_on.set()


def code_of(answer: Answer) -> str | None:
    body = json.loads(answer.body)
    return body["error"]["code"] if isinstance(body, dict) else None


def answers_at_the_end(
    way: str, then: Callable[[ModelServer, asyncio.AbstractEventLoop], object], **settings: Any
) -> list[Answer]:
    """Stop a server that holds requests; once it drains, something else happens."""
    loops: list[asyncio.AbstractEventLoop] = []

    def meanwhile(server: ModelServer) -> None:
        until(lambda: server.model_for("m").state == "draining")
        then(server, loops[0])

    with ThreadPoolExecutor(N + 1) as pool:
        with places(make_server(loops, **settings), way) as found:
            place, model = found[way], found[way].models.model_for("m")
            asked = [pool.submit(place.ask, post(f"text {number}")) for number in range(N)]
            until(lambda: model.statistics().in_flight == N)
            watch: Future[None] = pool.submit(meanwhile, place.models)
        watch.result(10)
        return [future.result(10) for future in asked]


def test_a_stop_loses_no_request_that_is_in_flight(way: str) -> None:
    answers = answers_at_the_end(way, lambda *_: Held.go_on.set())

    assert [json.loads(answer.body) for answer in answers] == [f"text {n}" for n in range(N)]
    assert {(answer.status, answer.is_last) for answer in answers} == {(200, True)}


def test_what_is_not_done_when_the_drain_is_over_is_told_why(way: str) -> None:
    answers = answers_at_the_end(way, lambda *_: None, drain_s=0.2)

    told = {(answer.status, code_of(answer), answer.is_last) for answer in answers}
    assert told == {(503, "draining", True)}


def test_whoever_hurries_the_stop_has_all_requests_told_why(way: str) -> None:
    def hurry(server: ModelServer, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.run_coroutine_threadsafe(server.registry.hurry(), loop).result(10)

    answers = answers_at_the_end(way, hurry)

    told = {(answer.status, code_of(answer), answer.is_last) for answer in answers}
    assert told == {(503, "draining", True)}


def test_a_request_that_is_here_by_half_at_the_stop_is_told_so(way: str) -> None:
    with places(make_server([]), way) as found:
        connection = found[way].connected()
        connection.sendall(post("text")[:-3])
    with connection:
        answer = read_answer(connection)

    assert (answer.status, code_of(answer), answer.is_last) == (503, "draining", True)


ERRORS: dict[str, type[Exception]] = {
    "broken": RuntimeError,
    "endless": RecursionError,
    "too large": MemoryError,
    "stopped": StopIteration,
    "left": ConnectionResetError,
}


class Odd(BaseModel):
    """Some of these cannot be written."""

    text: str

    @field_serializer("text")
    def write(self, text: str) -> str:
        if text in ERRORS:
            raise ERRORS[text]
        return text


class Together(ModelHandler[str, Odd]):
    """Holds "hold", so that what comes meanwhile is one batch."""

    batching = Batching(max_size=8)
    go_on: ClassVar[threading.Event] = threading.Event()
    sizes: ClassVar[list[int]] = []

    def infer(self, inputs: list[str]) -> list[Odd]:
        self.sizes.append(len(inputs))
        if inputs == ["hold"]:
            assert self.go_on.wait(10)
        if "failing" in inputs:
            raise RuntimeError
        return [Odd(text=text) for text in inputs]


class Large(ModelHandler[str, str]):
    """Answers with much."""

    answered: ClassVar[threading.Event] = threading.Event()

    def infer(self, inputs: list[str]) -> list[str]:
        self.answered.set()
        return ["x" * LARGE for _ in inputs]


@pytest.fixture(scope="module")
def both() -> Iterator[dict[str, Place]]:
    def make(records: list[InferenceRecord], middleware: list[Middleware]) -> ModelServer:
        return ModelServer(middleware=middleware).add("m", Together).add("large", Large)

    with places(make, DIRECT, ORDINARY) as found:
        yield found


def asked_together(place: Place, texts: list[str]) -> dict[str, Answer]:
    """Have several requests answered as one batch, each on a connection of its own."""
    Together.go_on.clear()
    Together.sizes.clear()
    with ThreadPoolExecutor(len(texts) + 1) as pool:
        first = pool.submit(place.ask, post("hold"))
        until(lambda: Together.sizes == [1])
        asked = {text: pool.submit(place.ask, post(text)) for text in texts}
        until(lambda: place.models.model_for("m").statistics().queued == len(texts))
        Together.go_on.set()
        assert first.result(10).status == 200
        answers = {text: future.result(10) for text, future in asked.items()}
    assert Together.sizes[1] == len(texts)
    return answers


def test_an_answer_that_cannot_be_written_costs_no_other_of_its_batch(
    both: dict[str, Place],
) -> None:
    texts = ["a", "broken", "b", *ERRORS.keys() - {"broken"}, "c"]

    direct, ordinary = (asked_together(place, texts) for place in both.values())

    for text in texts:
        ours, theirs = direct[text], ordinary[text]
        assert (ours.status, code_or_text(ours)) == (theirs.status, code_or_text(theirs)), text
        assert ours.status == (500 if text in ERRORS else 200)


def code_or_text(answer: Answer) -> str:
    body = json.loads(answer.body)
    return str(body["error"]["code"] if "error" in body else body["text"])


@pytest.mark.parametrize("method", ["respond", "settle"])
def test_an_answer_that_cannot_be_sent_or_noted_costs_no_other_of_its_batch(
    both: dict[str, Place], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    done: list[Exchange] = []
    original = getattr(Exchange, method)

    def failing(exchange: Exchange, *args: Any) -> Any:
        done.append(exchange)
        if len(done) == 3:
            raise RuntimeError("internal")
        return original(exchange, *args)

    monkeypatch.setattr(Exchange, method, failing)

    answers = asked_together(both[DIRECT], ["a", "b", "c", "d", "e"])

    n_lost = method == "respond"
    assert sorted(answer.status for answer in answers.values()) == [0] * n_lost + [200] * (
        5 - n_lost
    )
    assert both[DIRECT].ask(post("next")).status == 200
    assert both[DIRECT].models.model_for("m").statistics().in_flight == 0


@pytest.mark.parametrize("name", [DIRECT, ORDINARY])
def test_what_is_answered_to_who_does_not_read_takes_bounded_memory(
    both: dict[str, Place], name: str
) -> None:
    place = both[name]
    n = 30
    with place.connected() as connection:
        for _ in range(n):
            connection.sendall(request_to("large", b'"a"', JSON))
            Large.answered.wait(0.02)  # each comes after the one before, as far as it goes
            Large.answered.clear()
        held = [one for one in gc.get_objects() if isinstance(one, Connection)]
        n_bytes = max(one.transport.get_write_buffer_size() for one in held)
        received, left = 0, n * LARGE
        while received < left and (piece := connection.recv(1_000_000)):
            received += len(piece)

    assert n_bytes < 3 * LARGE
    assert received >= left


def test_nothing_of_a_request_waits_for_the_collector(both: dict[str, Place]) -> None:
    place = both[DIRECT]
    requests = [post("good"), post("failing"), post("broken"), request_to("m", b"{", JSON)]
    requests += [request_to("m", b'"a"'), request_to("m", b"1", JSON, b"X-Request-Timeout: 0")]
    logging.disable()  # pytest keeps what is logged, tracebacks included
    gc.collect()
    gc.disable()
    try:
        with place.connected() as kept:
            for request in requests * 3:
                place.ask_twice(request)
                kept.sendall(request)
                read_answer(kept)
                with place.connected() as left:
                    left.sendall(request[:-1])
            with place.connected() as left:
                Together.go_on.clear()
                left.sendall(post("hold"))
                until(lambda: place.models.model_for("m").statistics().running == 1)
            Together.go_on.set()
            until(lambda: not alive(DirectPrediction, Exchange, Job), 3)
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


def alive(*kinds: type) -> list[Any]:
    return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]
