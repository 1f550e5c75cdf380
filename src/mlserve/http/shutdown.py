"""
Shutting down without losing a request, whoever runs the server.

What listens is closed with nobody left in its queue, the models begin to drain with the signal,
and a request whose task the server cancels is told why.
"""

import asyncio
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import Any

from starlette.requests import Request
from starlette.types import Scope, Send
from uvicorn.server import HANDLED_SIGNALS

from mlserve.errors import DrainingError
from mlserve.execution.worker import TaskSet
from mlserve.http.errors import handle_error
from mlserve.observability.loggers import get_logger
from mlserve.registry import Registry

__all__ = [
    "LAST_WORDS_S",
    "MODEL",
    "answer_cancelled",
    "close_listeners",
    "draining_on_signals",
    "is_shutdown",
    "shutdown_draining",
]

logger = get_logger(__name__)

LAST_WORDS_S = 0.1
"""How long a request that is being cancelled may take to say why, in seconds."""

MODEL = "mlserve.model"
"""Where the scope of a model's route holds the model's name; `None` = not known yet."""

_MAX_WAITING = 4096
_TURNS_OF_AN_ACCEPT = 3


async def shutdown_draining(shutdown: Awaitable[None], registry: Registry | None) -> None:
    """
    Shut a server down while its models drain.

    uvicorn waits for its connections first and for the application afterwards, and connections
    whose requests are never answered would be cut.

    Args:
        shutdown: uvicorn's own shutdown.
        registry: The models; `None` if they are not known.
    """
    tasks = TaskSet()
    if registry is not None and registry.is_running:
        tasks.spawn(registry.drain())
    try:
        await shutdown
    finally:
        await tasks.close()


async def close_listeners(
    servers: Sequence[asyncio.AbstractServer], connect: Callable[[], asyncio.Protocol]
) -> None:
    """
    Stop listening, and take every connection that the system has accepted already.

    To its client such a connection is open, and may carry a request: closing the socket before it
    is taken would reset it.

    Args:
        servers: What listens.
        connect: Makes the protocol of a connection.
    """
    loop = asyncio.get_running_loop()
    listeners: list[socket.socket] = []
    with suppress(OSError):  # there may be no descriptor left: then those that wait are lost
        for server in servers:
            for listener in getattr(server, "sockets", ()):
                twin = socket.fromfd(listener.fileno(), listener.family, listener.type)
                listeners.append(twin)
    for server in servers:
        server.close()
    # Nothing may come between the last look and the close.
    waiting = [connection for listener in listeners for connection in _take_all(listener)]
    for connection in waiting:
        with suppress(OSError):  # its client has left
            await loop.connect_accepted_socket(connect, connection)
    for _ in range(_TURNS_OF_AN_ACCEPT):  # those that the event loop itself is about to take
        await asyncio.sleep(0)


def _take_all(listener: socket.socket) -> list[socket.socket]:
    connections: list[socket.socket] = []
    with listener:
        listener.setblocking(False)
        while len(connections) < _MAX_WAITING:
            try:
                connection, _ = listener.accept()
            except OSError:
                break
            connection.setblocking(False)
            connections.append(connection)
    return connections


@asynccontextmanager
async def draining_on_signals(registry: Registry) -> AsyncIterator[None]:
    """
    Begin to drain with SIGINT or SIGTERM, under a server that tells the application too late.

    uvicorn tells it only when its connections have ended, and they end only when their requests
    are answered. The server's own handler is called as ever and restored afterwards. The second
    signal ends the drain at once. Nothing is done where the server drains by itself, and in other
    threads than the main one, which get no signals.

    Args:
        registry: The models.
    """
    if registry.is_supervised or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    tasks = TaskSet()
    previous: dict[int, Any] = {}

    n_signals = 0

    def begin() -> None:
        nonlocal n_signals
        n_signals += 1
        # The first one: an administrator may have begun to drain already, and nobody is hurried.
        tasks.spawn(registry.drain() if n_signals == 1 else registry.hurry())

    def note(number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(begin)
        previous[number](number, frame)

    for handled in HANDLED_SIGNALS:
        handler = signal.getsignal(handled)
        if callable(handler):  # else the process ends or goes on without asking anybody
            previous[handled] = handler
            signal.signal(handled, note)
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)
        await tasks.close()


async def answer_cancelled(
    request: Request, send: Send, cancelled: asyncio.CancelledError, model: str | None = None
) -> None:
    """
    Answer a request whose task the server cancels: the server's own answer would be a bare 500.

    Args:
        request: The request; its answer has not begun.
        send: Its connection.
        cancelled: How its task learnt of it; whoever cancelled it for another reason answers.
        model: Whose request it is.
    """
    if not is_shutdown(request.scope, cancelled):
        return
    response = await handle_error(request, DrainingError(model))
    response.headers["Connection"] = "close"
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(LAST_WORDS_S):
            await response(request.scope, request.receive, send)


def is_shutdown(scope: Scope, cancelled: asyncio.CancelledError) -> bool:
    """
    Say whether a request is cancelled because its server ends.

    Others may cancel it too, such as a timeout in a middleware, which then answers itself.

    Args:
        scope: The request's scope.
        cancelled: How its task learnt of it.
    """
    registry = getattr(getattr(scope.get("app"), "state", None), "mlserve_registry", None)
    is_draining = isinstance(registry, Registry) and registry.is_draining
    return is_draining or "shutdown" in str(cancelled)  # uvicorn says so
