"""
A server and its clients in one event loop, so that what they do has an order.

The server has real sockets and all that `mlserve run` gives it. The clients write without waiting
and are called when there is something to read; none of their code is counted.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any

import uvicorn
from benchmarks.counting.systems import BODY, System, Turns

from mlserve.http.runner import make_config, shutdown_draining
from mlserve.observability.access_log import JsonFormatter
from mlserve.observability.log_queue import StderrHandler, queued_logging
from mlserve.registry import Registry

__all__ = ["Clients", "logged", "serving", "unlogged"]

_START_S = 30.0
_TURNS = 50
_PLAIN: dict[str, Any] = {"log_config": None, "access_log": False}


class Clients:
    """
    Connections to one server, all of which ask at once.

    Args:
        port: The server's.
        system: What they ask.
        n: How many there are.
        turns: Where streams wait to be told to go on.
    """

    def __init__(self, port: int, system: System, n: int, turns: Turns) -> None:
        self.turns = turns
        self._system = system
        self._loop = asyncio.get_running_loop()
        self._clients = [_Client(port, system.status, self._note) for _ in range(n)]
        self._n_due = 0
        self._answered: asyncio.Future[None] = self._loop.create_future()

    def send(self, body: bytes) -> None:
        """Have each connection send a request."""
        request = (
            f"POST {self._system.path} HTTP/1.1\r\nHost: localhost\r\n{self._system.header}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self._n_due = len(self._clients)
        self._answered = self._loop.create_future()
        for client in self._clients:
            client.send(request)

    async def answers(self) -> None:
        """Wait until each has its answer."""
        await self._answered

    async def ask(self, body: bytes) -> None:
        """Have each connection send a request, and wait for all answers."""
        self.send(body)
        await self.answers()

    async def read_events(self, n: int) -> None:
        """Have each connection ask for a stream; each event is there before the next is made."""
        self.send(b'{"x":%d}' % n)
        for client in self._clients:
            client.on_event = self.turns.give
        for _ in self._clients:
            self.turns.give()
        await self.answers()

    async def settle(self) -> None:
        """Let the server read and queue what was sent."""
        for _ in range(_TURNS):
            turn = self._loop.create_future()
            self._loop.call_soon(turn.set_result, None)
            await turn

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()

    def _note(self, wrong: bytes | None) -> None:
        self._n_due -= 1
        if self._answered.done():
            return
        if wrong is not None:
            self._answered.set_exception(RuntimeError(f"The answer is {wrong!r}."))
        elif self._n_due == 0:
            self._answered.set_result(None)


class _Client:
    """
    One connection.

    Args:
        port: The server's.
        status: What it answers.
        on_answer: Called once a whole answer is here, or with what is none.
    """

    def __init__(self, port: int, status: int, on_answer: Callable[[bytes | None], None]) -> None:
        self._begins = b"HTTP/1.1 %d" % status
        self.on_event: Callable[[], None] | None = None
        self._on_answer = on_answer
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        data = self._socket.recv(65_536)
        self._received += data
        head, is_whole, body = self._received.partition(b"\r\n\r\n")
        if not (data and head.startswith(self._begins)):
            self._loop.remove_reader(self._socket)
            self._on_answer(self._received)
            return
        if not is_whole:
            return
        if b"chunked" in head:
            for _ in range(data.count(b"data: {") if self.on_event else 0):
                self.on_event()  # type: ignore[misc]  # just asked
            is_there = body.endswith(b"0\r\n\r\n")
        else:
            is_there = len(body) == int(head.lower().partition(b"content-length: ")[2].split()[0])
        if is_there:
            self._received, self.on_event = b"", None
            self._on_answer(None)


@asynccontextmanager
async def serving(
    system: System, n_clients: int, counting: AbstractContextManager[None] | None = None
) -> AsyncIterator[Clients]:
    """
    Serve in this event loop, with some connections open.

    Args:
        system: What is served.
        n_clients: How many connections.
        counting: Entered before the server starts, once the application is made.
    """
    turns = Turns()
    app = system.make(turns)
    registry = app.state.mlserve_registry if system.is_ours else None
    config = make_config(app, registry) if system.is_ours else uvicorn.Config(app, **_PLAIN)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with counting or nullcontext(), socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        await server.startup([listener])
        await server.on_tick(0)  # makes what stands in the head of every answer
        if registry is not None:
            await _loaded(registry)
        port = listener.getsockname()[1]
        clients, others = (Clients(port, system, n, turns) for n in (n_clients, 2))
        try:
            if system.is_full:
                turns.is_open.clear()
                others.send(BODY)
                await others.settle()
            yield clients
        finally:
            turns.is_open.set()
            clients.close()
            others.close()
            await shutdown_draining(server.shutdown([listener]), registry)


async def _loaded(registry: Registry) -> None:
    loop = asyncio.get_running_loop()
    if not await loop.run_in_executor(None, registry.wait_loaded, _START_S):
        raise RuntimeError("The model was not loaded.")


@contextmanager
def logged() -> Iterator[None]:
    """Log as `mlserve run` does, into nothing; all is written once the block has been left."""
    with open(os.devnull, "wb") as nowhere:
        handler = StderrHandler(nowhere.fileno())
        handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        with _logged_by(handler), queued_logging("mlserve"):
            yield


@contextmanager
def unlogged() -> Iterator[None]:
    """Write no log: what is said of starts and stops is of no interest."""
    with _logged_by(logging.NullHandler()):
        yield


@contextmanager
def _logged_by(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger("mlserve")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)
