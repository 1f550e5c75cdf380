"""Streams over a real socket: leaving clients, slow readers, many at once."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.http.waiting import until

from mlserve import Call, ModelHandler, ModelServer, Replicas, ServerSettings
from mlserve.testing import running

pytestmark = pytest.mark.slow

STREAM = "/v1/models/m/stream"


class Ask(BaseModel):
    text: str


class Watched:
    """What a stream's generator did, and where."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.threads: list[int] = []
        self.n_chunks = 0
        self.calls: list[Call] = []


def endless(watched: Watched, *, size: int = 1) -> type[ModelHandler[str, str]]:
    class Endless(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

        def stream(self, item: str, call: Call) -> Iterator[str]:
            pause = threading.Event()
            watched.calls.append(call)
            watched.threads.append(threading.get_ident())
            try:
                while True:
                    yield item * size
                    watched.n_chunks += 1
                    pause.wait(0.01)
            finally:
                watched.threads.append(threading.get_ident())
                watched.closed.set()

    return Endless


def read_chunks(answer: httpx2.Response, n: int) -> list[str]:
    lines = (line for line in answer.iter_lines() if line)
    return [next(lines) for _ in range(n)]


class PassThrough:
    """A user's pure ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


async def pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"settings": ServerSettings(gzip_min_bytes=0)},
        {"middleware": [Middleware(PassThrough)]},
        {"middleware": [Middleware(BaseHTTPMiddleware, dispatch=pass_on)]},
    ],
    ids=["plain", "gzip", "middleware", "starlettes middleware"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_client_that_leaves_closes_the_generator_soon_and_in_its_own_thread(
    options: dict[str, Any], method: str
) -> None:
    watched = Watched()

    class Asked(ModelHandler[Ask, str]):
        def stream(self, item: Ask, call: Call) -> Iterator[str]:
            yield from endless(watched)().stream(item.text, call)

    sent: dict[str, Any] = {"params": {"text": "x"}} if method == "GET" else {"json": {"text": "x"}}
    with running(ModelServer(**options).add("m", Asked)) as client:
        with client.stream(method, STREAM, **sent) as answer:
            chunks = read_chunks(answer, 3)
        left_at = time.monotonic()
        assert watched.closed.wait(5)
        took_s = time.monotonic() - left_at

    assert chunks == ['data: "x"'] * 3
    assert took_s < 1
    assert len(set(watched.threads)) == 1
    assert watched.calls[0].cancelled


def test_a_client_that_leaves_before_the_first_chunk_is_noticed() -> None:
    begun, told = threading.Event(), threading.Event()

    class Thinking(ModelHandler[str, str]):
        def stream(self, item: str, call: Call) -> Iterator[str]:
            begun.set()
            pause = threading.Event()
            while not call.cancelled:
                pause.wait(0.005)
            told.set()
            yield "too late"

    server = ModelServer().add("m", Thinking)

    async def leave(base_url: str) -> None:
        async with httpx2.AsyncClient(base_url=base_url) as client:
            request = asyncio.ensure_future(client.post(STREAM, json=""))
            assert await asyncio.to_thread(begun.wait, 5)
            request.cancel()

    with running(server) as client:
        asyncio.run(leave(str(client.base_url)))
        was_told = told.wait(5)
        until(lambda: server.model_for("m").statistics().in_flight == 0)

    assert was_told


def test_a_client_that_leaves_an_async_stream_closes_it() -> None:
    closed = threading.Event()

    class Remote(ModelHandler[str, str]):
        async def stream(self, item: str) -> AsyncIterator[str]:
            try:
                while True:
                    yield item
                    await asyncio.sleep(0.01)
            finally:
                closed.set()

    with running(ModelServer().add("m", Remote)) as client:
        with client.stream("POST", STREAM, json="x") as answer:
            read_chunks(answer, 3)
        was_closed = closed.wait(5)

    assert was_closed


def test_a_leaving_client_frees_the_place_for_the_next_stream() -> None:
    watched = Watched()
    server = ModelServer().add("m", endless(watched), replicas=Replicas(max_streams=1))

    with running(server) as client:
        for _ in range(3):
            with client.stream("POST", STREAM, json="x") as answer:
                chunks = read_chunks(answer, 1)
            assert chunks == ['data: "x"']


def test_a_slow_reader_holds_back_its_own_generator_only() -> None:
    watched = Watched()
    server = ModelServer().add("m", endless(watched, size=300_000))

    with running(server) as client:
        with client.stream("POST", STREAM, json="x") as slow:
            assert slow.status_code == 200
            before = -1
            pause = threading.Event()
            while watched.n_chunks != before:
                before = watched.n_chunks
                pause.wait(0.3)
            other = client.post("/v1/models/m/predict", json="quick")
            with client.stream("POST", STREAM, json="y") as answer:
                lines = read_chunks(answer, 2)
        was_closed = watched.closed.wait(5)

    assert watched.n_chunks < 100
    assert other.json() == "quick"
    assert [line[:8] for line in lines] == ['data: "y'] * 2
    assert was_closed


def test_predictions_pass_while_every_place_for_streams_is_taken() -> None:
    watched = Watched()
    server = ModelServer().add("m", endless(watched), replicas=Replicas(max_streams=1))

    with running(server) as client, client.stream("POST", STREAM, json="x") as first:
        lines = first.iter_lines()  # kept: the answer is closed with its iterator
        assert next(lines) == 'data: "x"'
        with httpx2.Client(base_url=client.base_url) as other:
            late = other.post(STREAM, json="y", headers={"X-Request-Timeout": "0.2"})
        predicted = client.post("/v1/models/m/predict", json="quick")

    assert late.status_code == 504
    assert "(stage: queue)" in late.json()["error"]["message"]
    assert predicted.json() == "quick"


def test_a_client_that_leaves_a_prediction_is_dropped_from_the_queue() -> None:
    busy, released = threading.Event(), threading.Event()
    ran: list[str] = []

    class Slow(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            ran.extend(inputs)
            busy.set()
            assert released.wait(10)
            return inputs

    server = ModelServer().add("m", Slow)
    model = server.model_for("m")

    async def leave(base_url: str) -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=base_url) as client:
            first = asyncio.ensure_future(client.post("/v1/models/m/predict", json="first"))
            assert await asyncio.to_thread(busy.wait, 5)
            second = asyncio.ensure_future(client.post("/v1/models/m/predict", json="second"))
            await asyncio.to_thread(until, lambda: model.statistics().queued == 1)
            second.cancel()
            await asyncio.to_thread(until, lambda: model.statistics().queued == 0)
            released.set()
            return await first

    with running(server) as client:
        answer = asyncio.run(leave(str(client.base_url)))

    assert answer.json() == "first"
    assert ran == ["first"]


def test_a_server_that_stops_ends_a_stream_with_an_error_and_done() -> None:
    watched = Watched()
    server = ModelServer(settings=ServerSettings(drain_s=0.2)).add("m", endless(watched))
    lines: list[str] = []

    with running(server) as client:
        begun = threading.Event()

        def read() -> None:
            with (
                httpx2.Client(base_url=client.base_url, timeout=10) as own,
                own.stream("POST", STREAM, json="x") as answer,
            ):
                for line in answer.iter_lines():
                    lines.append(line)
                    begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(5)
    reader.join(5)

    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert '"code": "draining"' in [line for line in lines if line][-2]
    assert watched.closed.wait(5)
