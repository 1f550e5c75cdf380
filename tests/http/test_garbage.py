"""What belongs to an answered request is freed at once: its payload may be large."""

import asyncio
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import httpx2
import pytest
from fastapi import Depends
from starlette.middleware import Middleware
from tests.http.test_middleware_matrix import PassThrough, foreign
from tests.http.waiting import until
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from mlserve import Call, InvalidInputError, ModelHandler, ModelServer
from mlserve.http.body import BodyLimit
from mlserve.http.connection import Connection
from mlserve.http.exchange import Exchange
from mlserve.job import Job
from mlserve.testing import running

pytestmark = pytest.mark.slow

PREDICT = "/v1/models/m/predict"
STREAM = "/v1/models/m/stream"
N = 5


class Moody(ModelHandler[str, str]):
    """Does what the text says."""

    def preprocess(self, request: str) -> str:
        if request == "refused":
            raise InvalidInputError("Not this one.")
        return request

    def infer(self, inputs: list[str], calls: list[Call]) -> list[Any]:
        if "failing" in inputs:
            raise RuntimeError
        if "slow" in inputs:
            until(lambda: calls[0].cancelled)
        return [OSError() if text == "one failing" else text for text in inputs]

    def postprocess(self, output: str) -> str:
        if output == "unfinished":
            raise RuntimeError
        return output

    def stream(self, item: str, call: Call) -> Iterator[str]:
        yield item
        if item == "failing":
            raise RuntimeError
        if item == "slow":
            until(lambda: call.cancelled)
        yield item


class AsyncMoody(ModelHandler[str, str]):
    """Does the same on the event loop."""

    async def preprocess(self, request: str) -> str:
        return Moody().preprocess(request)

    async def infer(self, inputs: list[str], calls: list[Call]) -> list[Any]:
        if "slow" in inputs:
            await asyncio.to_thread(until, lambda: calls[0].cancelled)
        return Moody().infer(inputs, calls)

    async def postprocess(self, output: str) -> str:
        return Moody().postprocess(output)

    async def stream(self, item: str, call: Call) -> AsyncIterator[str]:
        yield item
        if item == "failing":
            raise RuntimeError
        if item == "slow":
            await asyncio.to_thread(until, lambda: call.cancelled)
        yield item


def post(path: str, text: Any, **headers: str) -> Callable[[httpx2.Client], object]:
    return lambda client: client.post(path, json=text, headers=headers).read()


def leave(client: httpx2.Client) -> None:
    with client.stream("POST", STREAM, json="slow") as answer:
        next(answer.iter_raw())


WAYS: dict[str, Callable[[httpx2.Client], object]] = {
    "answered": post(PREDICT, "good"),
    "streamed": post(STREAM, "good"),
    "no JSON": lambda client: client.post(PREDICT, content=b"{", headers={"Content-Type": "a/b"}),
    "not valid": post(PREDICT, 1),
    "refused": post(PREDICT, "refused"),
    "failing": post(PREDICT, "failing"),
    "one of its batch": post(PREDICT, "one failing"),
    "failing at the end": post(PREDICT, "unfinished"),
    "failing amid its stream": post(STREAM, "failing"),
    "late": post(PREDICT, "slow", **{"X-Request-Timeout": "0.01"}),
    "late amid its stream": post(STREAM, "slow", **{"X-Request-Timeout": "0.01"}),
    "left": leave,
    "of no route": post("/v1/nothing", "x"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "async": {},
    "behind a dependency": {"dependencies": [Depends(lambda: None)]},
    "behind a middleware": {"middleware": [Middleware(PassThrough)]},
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    logging.disable()  # pytest keeps what is logged, tracebacks included
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


def alive(*kinds: type[Any]) -> Sequence[Any]:
    return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]


@pytest.fixture(scope="module", params=OPTIONS)
def client(request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    handler = AsyncMoody if request.param == "async" else Moody
    with running(ModelServer(**OPTIONS[request.param]).add("m", handler)) as client:
        yield client


@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_a_request_waits_for_the_collector(
    client: httpx2.Client, way: str, no_collector: None
) -> None:
    for _ in range(N):
        WAYS[way](client)

    until(lambda: not alive(Job, Exchange, BodyLimit), 2)


def test_nothing_of_a_connection_waits_for_the_collector(
    client: httpx2.Client, no_collector: None
) -> None:
    own = 1  # the client's
    client.get("/health")
    address = client.base_url.host, client.base_url.port or 0
    for sent in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", b"nonsense\r\n\r\n"):
        with socket.create_connection(address, 5) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(9999)

    until(lambda: len(alive(Connection)) == own, 2)
    until(lambda: len(alive(RequestResponseCycle)) == own, 2)


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_nothing_of_a_request_waits_for_the_collector_under_another_server(
    http: str, no_collector: None
) -> None:
    server = ModelServer().add("m", Moody)

    with foreign(server.build(), http) as client:
        until(lambda: server.model_for("m").state == "ready")
        for way in ("answered", "streamed", "failing", "not valid"):
            WAYS[way](client)

        until(lambda: not alive(Job, Exchange, BodyLimit), 2)
