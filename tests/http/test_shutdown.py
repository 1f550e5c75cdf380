"""What a shutdown does to connections and requests, without a process of its own."""

import asyncio
import json
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from types import FrameType
from typing import Any, cast

import pytest
import uvloop
from fastapi import Depends, FastAPI
from tests.http.waiting import until

from mlserve import Call, ModelHandler, ModelServer
from mlserve.http.shutdown import close_listeners, draining_on_signals
from mlserve.testing import EchoHandler

CANCELLED_BY_UVICORN = "Task cancelled, timeout graceful shutdown exceeded"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
STREAM = "/v1/models/endless/stream"


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on either event loop."""

    def run(scenario: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(asyncio.wait_for(scenario, 10))

    return run


class Greeter(asyncio.Protocol):
    """Says a word to whoever is connected, and ends the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast("asyncio.WriteTransport", transport)  # uvloop's are of no such class
        writer.write(b"hello")
        writer.close()


async def listening() -> tuple[asyncio.AbstractServer, tuple[str, int]]:
    server = await asyncio.get_running_loop().create_server(Greeter, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()


def test_connections_that_only_the_system_has_accepted_are_served(
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> None:
    async def scenario() -> list[bytes]:
        server, address = await listening()
        # The event loop does not run meanwhile: it has seen none of them.
        clients = [socket.create_connection(address, 5) for _ in range(20)]
        await close_listeners([server], Greeter)
        received = [await asyncio.to_thread(client.recv, 100) for client in clients]
        for client in clients:
            client.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 5)
        return received

    assert run(scenario()) == [b"hello"] * 20


def test_listeners_are_closed_where_no_descriptor_is_left(
    run: Callable[[Coroutine[Any, Any, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "fromfd", fail)

    async def scenario() -> None:
        server, address = await listening()
        await close_listeners([server], Greeter)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 5)

    run(scenario())


begun = threading.Event()


async def last(call: Call) -> None:
    """Take as long as somebody waits."""
    begun.set()
    await asyncio.to_thread(until, lambda: call.cancelled)


class Endless(ModelHandler[str, str]):
    async def infer(self, inputs: list[str], calls: list[Call]) -> list[str]:
        await last(calls[0])
        return inputs

    async def stream(self, item: str, call: Call) -> AsyncIterator[str]:
        yield item
        await last(call)


def endless_app() -> FastAPI:
    def allow() -> None:
        """Any dependency leads a request through FastAPI."""

    server = ModelServer().add("endless", Endless)
    server.add("guarded", Endless, dependencies=[Depends(allow)])
    app = server.build()

    @app.get("/own")
    async def own() -> None:
        begun.set()
        await asyncio.sleep(60)

    return app


async def ask_and_cancel(app: FastAPI, path: str, message: str | None) -> list[Any]:
    """Give what the application sends until its task has been cancelled, and has ended."""
    body = b'"hello"' if path.startswith("/v1") else b""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST" if body else "GET",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"x-request-id", b"r-1")],
    }
    sent: list[Any] = []
    received = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        return next(received, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    begun.clear()
    task = asyncio.ensure_future(app(scope, receive, send))
    n_sent = 2 if path == STREAM else 0
    await asyncio.to_thread(until, lambda: begun.is_set() and len(sent) == n_sent)
    task.cancel(message) if message else task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return sent


def cancelled(path: str, message: str | None) -> list[Any]:
    async def scenario() -> list[Any]:
        app = endless_app()
        registry = app.state.mlserve_registry
        async with registry.running():
            sent = await ask_and_cancel(app, path, message)
            await registry.hurry()
        return sent

    return asyncio.run(asyncio.wait_for(scenario(), 10))


@pytest.mark.parametrize(
    "path", ["/v1/models/endless/predict", "/v1/models/guarded/predict", "/own"]
)
def test_a_request_that_the_server_cancels_is_told_why(path: str) -> None:
    start, body = cancelled(path, CANCELLED_BY_UVICORN)

    assert start["status"] == 503
    assert (b"connection", b"close") in start["headers"]
    assert (b"x-request-id", b"r-1") in start["headers"]
    assert json.loads(body["body"])["error"]["code"] == "draining"


def test_a_stream_that_the_server_cancels_ends_with_an_error_and_done() -> None:
    start, first, last = cancelled(STREAM, CANCELLED_BY_UVICORN)

    assert (start["status"], first["body"]) == (200, b'data: "hello"\n\n')
    assert b'"code": "draining"' in last["body"]
    assert last["body"].endswith(b"\n\ndata: [DONE]\n\n")
    assert not last["more_body"]


@pytest.mark.parametrize("path", ["/v1/models/endless/predict", "/own", STREAM])
def test_a_request_that_somebody_else_cancels_is_left_to_them(path: str) -> None:
    sent = cancelled(path, None)

    assert [message["type"] for message in sent[2:]] == []
    assert all(message.get("status", 200) == 200 for message in sent)


def signalled(*numbers: signal.Signals, drains_already: bool = False) -> list[str]:
    """Send signals to a server that does not drain by itself, and note what comes of each."""
    events: list[str] = []
    registry = ModelServer().add("echo", EchoHandler).registry

    def theirs(number: int, frame: FrameType | None) -> None:
        events.append("theirs")

    async def scenario() -> None:
        async with registry.running(), draining_on_signals(registry):
            if drains_already:
                registry.begin_drain()
            for number in numbers:
                signal.raise_signal(number)
                for _ in range(5):
                    await asyncio.sleep(0)
                events.append(f"draining={registry.is_draining} hurried={registry.is_hurried}")

    before = {number: signal.signal(number, theirs) for number in set(numbers)}
    try:
        asyncio.run(scenario())
        assert all(signal.getsignal(number) is theirs for number in numbers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return events


def test_a_signal_begins_the_drain_and_the_servers_own_handler_is_called() -> None:
    assert signalled(signal.SIGTERM) == ["theirs", "draining=True hurried=False"]


def test_the_first_signal_hurries_nobody_where_an_administrator_has_begun_the_drain() -> None:
    events = signalled(signal.SIGTERM, drains_already=True)

    assert events == ["theirs", "draining=True hurried=False"]


def test_a_second_signal_ends_the_drain() -> None:
    assert signalled(signal.SIGTERM, signal.SIGINT) == [
        "theirs",
        "draining=True hurried=False",
        "theirs",
        "draining=True hurried=True",
    ]


def test_signals_are_left_alone_where_the_server_drains_or_another_thread_serves() -> None:
    registry = ModelServer().add("echo", EchoHandler).registry
    before = signal.getsignal(signal.SIGTERM)
    handlers: list[Any] = []

    async def enter() -> None:
        async with draining_on_signals(registry):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=lambda: asyncio.run(enter()))
    thread.start()
    thread.join(5)
    registry.is_supervised = True
    asyncio.run(enter())

    assert handlers == [before, before]
