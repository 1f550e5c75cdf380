"""
The server's side of one connection: uvicorn's httptools protocol, where answering costs less.

An answer that is whole leaves in one write, a request that needs no task gets none, and no timer
of the event loop is set for each of them. What may come in is bounded in `connection`.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import ref

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from mlserve.http.timer import Timer
from mlserve.http.transport import GatheredTransport

__all__ = ["CONNECTION", "Direct", "Door", "WireProtocol"]

CONNECTION = "mlserve.connection"
"""Where a scope holds a weak reference to the connection that it came by."""

_CLOSES = (b"connection", b"close")


class Direct(Protocol):
    """A request that is answered without a task."""

    def take(self, body: bytes) -> None:
        """Go on with the whole body."""

    def leave(self) -> None:
        """End: the client has left."""

    def expire(self) -> None:
        """End: the body did not arrive in time."""


class Known(Protocol):
    """What was found in a head that came before."""

    @property
    def scope(self) -> dict[str, Any]:
        """The scope, without what belongs to one request."""


class Door(Protocol):
    """
    Says what becomes of requests.

    What it gives for a request goes on without a task; `None` = the application is asked, unless
    the connection has got the whole answer meanwhile.
    """

    def enter(self, scope: Scope, connection: Any) -> Direct | None:
        """Take a request when its head is there."""

    def find(self, data: bytes, own: Any) -> tuple[Known, bytes] | None:
        """Look whether a whole request has a head that came before; give that, and its body."""

    def sheds(self, known: Any, connection: Any) -> bool:
        """Refuse a request whose head came before, if there is no room for it; say whether."""

    def repeat(self, known: Any, scope: Scope, connection: Any) -> Direct | None:
        """Take a request whose head came before."""

    def learn(self, data: bytes, direct: Any) -> Any:
        """
        Note the head of a request that goes on without a task, and came in one piece.

        What is given is for this connection alone, and to be shown to `find`.
        """


class WireProtocol(HttpToolsProtocol):
    """
    One connection.

    Args:
        door: Says what becomes of requests.
        config: uvicorn's configuration.
        server_state: What uvicorn's connections share.
        app_state: What the lifespan gave.
        _loop: The event loop; uvicorn names it so.
    """

    def __init__(
        self,
        door: Door,
        *,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._door = door
        self._gathered: GatheredTransport
        self._keep_alive = Timer(self.loop)
        # The request that is being answered; `cycle` is the last one that was read.
        self._answering: RequestResponseCycle | None = None
        # What answers it once its body is here, if that needs no task.
        self._direct: Direct | None = None
        # The same, until it is learnt how its head looks.
        self._entered: Direct | None = None
        # The head of this connection that others need not know, and what was found in it.
        self._own_head: Any = None
        # The request that was read last if it had no task, which would hold it.
        self._reusable: RequestResponseCycle | None = None
        self._on_leave: Callable[[], None] | None = None

    @property
    def has_whole_body(self) -> bool:
        """Whether the request that is being answered was received to its end."""
        return self._answering is not None and not self._answering.more_body

    def watch(self, on_leave: Callable[[], None] | None) -> None:
        """Have a function called once the client of the present request has left, or no longer."""
        self._on_leave = on_leave

    def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """
        Send the whole answer to the present request, in one write; nothing if the client has left.

        Args:
            status: The status code.
            headers: All headers, with lower-case names and `content-length`, but for those that
                every answer of this server has.
            body: The body.

        Raises:
            ValueError: If a header holds a line break; nothing is sent then.
        """
        cycle = self._answering
        if cycle is None or cycle.response_started or cycle.disconnected:
            return
        lines = [*self.server_state.default_headers, *headers]
        if _CLOSES in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            lines.append(_CLOSES)
        head = b"\r\n".join(map(b": ".join, lines))
        n_breaks = len(lines) - 1
        if head.count(b"\n") != n_breaks or head.count(b"\r") != n_breaks:
            raise ValueError("A header of the answer holds a line break.")
        self.send_whole(b"%b%b\r\n\r\n%b" % (STATUS_LINE[status], head, body))

    def send_whole(self, answer: bytes) -> None:
        """Send all of an answer to the present request, which still waits for it."""
        cycle = self._answering
        if cycle is None:
            return
        cycle.response_started = cycle.response_complete = True  # what follows of it is ignored
        self._gathered.write_now(answer)
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._gathered = GatheredTransport(transport, self.loop)
        super().connection_made(self._gathered)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whoever answers this client is told."""
        self._keep_alive.close()
        self._gathered.lost()
        super().connection_lost(exc)
        self._leave()

    def on_response_complete(self) -> None:
        """Send what is left of the answer, and go on with the next request or wait for it."""
        if self._gathered.has_parts:
            self._gathered.flush()
        self._on_leave = self._direct = self._entered = self._answering = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._keep_alive.start(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        # Behind others that wait, each would be answered within the one before; and what is
        # answered at once does not wait for a client that does not read.
        if not self._is_queueing:
            scope: Any = cycle.scope
            direct = self._door.enter(scope, self)
            if direct is not None or cycle.response_complete:
                cycle.on_response = _nothing  # else it and this connection would hold each other
                self._reusable = cycle
            if cycle.response_complete:
                return
            if direct is not None:
                self._direct = self._entered = direct
                self._on_leave = direct.leave
                if not cycle.more_body:
                    self._take_direct(cycle)
                return
        super()._start_asgi_task(cycle, app)

    @property
    def _is_queueing(self) -> bool:
        """Whether more requests wait for their turn, or answers for their client."""
        return bool(self.pipeline) or self.flow.write_paused

    def _repeat(self, known: Known, body: bytes) -> bool:
        """
        Answer a request whose head came before, in place of the one before it if there is one.

        Returns:
            Whether it is; else it has to be parsed.
        """
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None:
            cycle = self.cycle = self._reusable = self._first_cycle()
        self._answering = cycle
        cycle.response_started = cycle.response_complete = False
        if self._door.sheds(known, self):
            return True
        scope: Any = {**known.scope, "client": self.client, CONNECTION: ref(self)}
        cycle.scope = scope
        direct = self._door.repeat(known, scope, self)
        if cycle.response_complete:
            return True
        if direct is not None:
            self._on_leave = direct.leave
            direct.take(body)
        else:
            cycle.response_started = cycle.response_complete = True
            self._answering = None
            return False
        return True

    def _first_cycle(self) -> RequestResponseCycle:
        """Make what uvicorn knows of a request, for a connection that has had none."""
        cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,  # else its head would not be known
            on_response=_nothing,
        )
        cycle.more_body = False
        return cycle

    def _take_direct(self, cycle: RequestResponseCycle) -> None:
        direct, self._direct = self._direct, None
        body, cycle.body = cycle.body, bytearray()
        if direct is not None:
            direct.take(bytes(body))

    def _leave(self) -> None:
        """Tell whoever answers this client that it waits no longer."""
        latest: RequestResponseCycle | None = self.cycle
        if latest is not None and not latest.response_complete:
            latest.disconnected = True
            latest.message_event.set()
        on_leave = self._on_leave
        self._on_leave = self._direct = self._entered = None
        if on_leave is not None:
            on_leave()

    def _unset_keepalive_if_required(self) -> None:
        self._keep_alive.stop()


def _nothing() -> None:
    """Stands where uvicorn's requests tell their connection that they have been answered."""
