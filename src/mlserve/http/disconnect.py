"""
Noticing that a client has left.

The server of `mlserve run` says so itself, at once and for nothing. Other servers tell it through
ASGI's `receive`, and only to who asks; asking costs, so quick requests never do.
"""

import asyncio
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from mlserve.http.connection import connection_of
from mlserve.http.foreign import RECEIVE, warn_of_hiding
from mlserve.observability.loggers import get_logger

__all__ = ["DisconnectWatch"]

logger = get_logger(__name__)


class DisconnectWatch:
    """
    Calls back once the client has left.

    The request's body must have been read. Use it as a context manager, or call `stop`.

    Args:
        request: The request; nobody else may receive from it meanwhile.
        on_leave: Called on the event loop, at most once.
        after_s: From which age of the request on to ask, in seconds.
    """

    def __init__(
        self, request: Request, on_leave: Callable[[], None], after_s: float = 0.02
    ) -> None:
        # Asked in turn: what stands between the server and us may hide that the client has left.
        self._ways = [request.scope.get(RECEIVE), request.receive]
        self._app = request.scope.get("app")
        self._on_leave = on_leave
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.Handle | None = None
        self._connection = connection_of(request.scope)
        if self._connection is None:
            self._timer = asyncio.get_running_loop().call_later(after_s, self._start)
        elif self._connection.transport.is_closing():  # the client left before its turn came
            self._timer = asyncio.get_running_loop().call_soon(on_leave)
        else:
            self._connection.watch(on_leave)

    def stop(self) -> None:
        """End the watch."""
        if self._connection is not None:
            self._connection.watch(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def __enter__(self) -> "DisconnectWatch":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        for receive in self._ways:
            if receive is not None and await _says_left(receive):
                self._on_leave()
                return
        warn_of_hiding(self._app)


async def _says_left(receive: Receive) -> bool:
    """Wait until the client has left; `False` if something else comes instead."""
    try:
        message = await receive()
    except (OSError, ClientDisconnect):  # a connection that breaks has been left
        logger.debug("The connection broke while it was watched.", exc_info=True)
        return True
    except Exception:  # a middleware's fault: it says nothing of the client
        logger.debug("The request's `receive` broke.", exc_info=True)
        return False
    # If it is the body again, asking on would get it for ever, and without a pause.
    return bool(message["type"] == "http.disconnect")
