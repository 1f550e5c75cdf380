"""
The server's side of one connection under `mlserve run`: uvicorn's httptools protocol, hardened.

What it adds to uvicorn's: head and body of an answer leave in one write, a handler is told at once
that its client has left, request heads are bounded in size and time, and whatever is refused before
the application sees it has the same error body as every other error. Runs on the event loop.
"""

import asyncio
from itertools import chain
from typing import Any
from weakref import ref

import httptools
from starlette.exceptions import HTTPException
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from mlserve.errors import DrainingError
from mlserve.http.refusal import bad_request, refusal, require_one_meaning
from mlserve.http.timer import Timer
from mlserve.http.upgrade import head_without_offer, require_handshake
from mlserve.http.wire import CONNECTION, Door, WireProtocol
from mlserve.settings import ServerSettings

__all__ = ["Connection", "connection_of"]

_MAX_CHUNKS = 65_536
_PIECE_BYTES = 4096
_FRAMING_BYTES = 64
_PER_HEADER_BYTES = 4  # what a header takes on the wire beside its name and value
_SPARE_S = 0.5  # who reads a body has a bound of its own, and knows better what to say
_SILENT_S = 1.0  # an idle connection is closed once its client has said nothing for so long
_UNFINISHED_S = 0.5  # how long a request that is here by half is waited for at the shutdown


def connection_of(scope: Scope) -> "Connection | None":
    """Give the connection that a request came by; `None` under a foreign server."""
    connection = scope.get(CONNECTION)
    found = connection() if isinstance(connection, ref) else None
    return found if isinstance(found, Connection) else None


class Connection(WireProtocol):
    """
    One connection.

    Args:
        settings: How large a head may be and how long it may take.
        door: Says what becomes of requests.
        options: What uvicorn gives to each connection.
    """

    def __init__(self, settings: ServerSettings, door: Door, **options: Any) -> None:
        super().__init__(door, **options)
        self._settings = settings
        # Runs while the client owes us something: a head, the rest of a body, or any sign of life.
        self._arrival = Timer(self.loop)
        self._head_bytes = 0
        self._body_bytes = 0
        self._n_chunks = self._framing_bytes = 0
        self._is_in_head = False
        self._began_now = False  # whether the latest head began with what was received last
        self._is_refusing = self._is_handed_over = False
        self._is_ending = False
        self._ending = Timer(self.loop)
        # What came and is parsed once the requests before it are being answered.
        self._ahead = b""
        # The request whose answer says that the connection closes.
        self._closing: RequestResponseCycle | None = None

    @property
    def _latest(self) -> RequestResponseCycle | None:
        """The request that was read last; uvicorn's type leaves out that there may be none."""
        return self.cycle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: a client that sends no request in time is not waited for."""
        super().connection_made(transport)
        self._bound_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whoever answers this client is told."""
        self._arrival.close()
        self._ending.close()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, but few requests ahead of their answers: each takes memory."""
        self._keep_alive.stop()
        if self._is_repeated(data):
            return
        if not self._ahead and len(data) <= _PIECE_BYTES and not (self.pipeline or self._is_over):
            self._take_at_once(data)  # nearly always: all that came is one piece
            if self.pipeline:  # uvicorn stops reading then, and would not see that the client left
                self.flow.resume_reading()
            return
        self._ahead += data
        while self._ahead and not (self.pipeline or self._is_over):
            is_in_body = self._latest is not None and self._latest.more_body
            n_bytes = len(self._ahead) if is_in_body else _PIECE_BYTES
            piece, self._ahead = self._ahead[:n_bytes], self._ahead[n_bytes:]
            self._take(piece)
        if self._is_over:
            self._ahead = b""
        elif self._ahead:
            self.flow.pause_reading()
        elif self.pipeline or self._is_in_head or self._is_idle:
            self.flow.resume_reading()

    def _is_repeated(self, data: bytes) -> bool:
        """Answer a whole request whose head is known; nearly all of those that follow others."""
        latest = self._latest
        is_due = latest is None or (
            latest is self._reusable and latest.response_complete and not latest.more_body
        )
        if (
            not is_due
            or self._is_in_head
            or self._ahead
            or self.pipeline
            or self.flow.write_paused
            or self._is_refusing
            or self._is_handed_over
            or self._is_ending
            or len(data) > _PIECE_BYTES
            or self.transport.is_closing()
        ):
            return False
        found = self._door.find(data, self._own_head)
        if found is None:
            return False
        self._arrival.stop()  # a head was waited for where nothing came before, or a late body
        return self._repeat(*found)

    def _take_at_once(self, data: bytes) -> None:
        """Take a piece alone: mostly a whole request, whose head may be learnt."""
        latest = self._latest
        is_between = latest is None or (latest.response_complete and not latest.more_body)
        is_between = is_between and not self._is_in_head
        self._entered = None
        self._take(data)
        entered, self._entered = self._entered, None
        is_waiting = entered is not None and self.has_whole_body and self.cycle.keep_alive
        if is_between and entered is not None and is_waiting:
            self._own_head = self._door.learn(data, entered) or self._own_head

    def _take(self, data: bytes) -> None:
        """Parse a piece, and refuse heads that are too large, too slow or no HTTP."""
        cycle, n_body, self._began_now = self._latest, self._body_bytes, False
        try:
            self._feed(data)
        except httptools.HttpParserError as exc:
            refusal = exc.__context__
            self._refuse(refusal if isinstance(refusal, HTTPException) else bad_request())
            return
        latest = self._latest
        if latest is not None and not (
            self._is_in_head or latest.more_body or latest.response_complete
        ):
            return  # nearly always: a whole request, which is being answered
        if self._is_in_head:
            self._bound_head(self._n_of_head(len(data)))
        elif cycle is not None and cycle is self._latest and cycle.more_body:
            self._bound_framing(len(data) - (self._body_bytes - n_body))
        if not (self._arrival.is_running or self._is_over):
            self._bound_wait()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as exc:
                if self._should_upgrade():
                    self._is_handed_over = True
                    self.handle_websocket_upgrade()
                    return
                # The parser takes a request that offers an upgrade for one without a body. Java's
                # client offers HTTP/2 with every first request; we do not take it.
                head = head_without_offer(self.parser, self.url, self.headers)
                data = head + data[exc.args[0] :]
                self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        # Weakly: what has ended is freed at once, and does not wait for the collector.
        scope: Any = self.scope
        scope[CONNECTION] = ref(self)
        self._is_in_head = self._began_now = True
        self._head_bytes = 0
        self._n_chunks = self._framing_bytes = 0
        if self._is_ending and self._is_idle:
            self._ending.start(_UNFINISHED_S, self._end)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those that come after the body are not read as the request's."""
        if self._is_in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
            return
        self._head_bytes += len(name) + len(value) + _PER_HEADER_BYTES
        self._require_small_head()

    def on_chunk_header(self) -> None:
        """Count the chunks of a body: each costs time, however small it is."""
        self._n_chunks += 1
        if self._n_chunks > _MAX_CHUNKS:
            raise HTTPException(413, "The body comes in too many chunks. Send larger ones.")

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._body_bytes += len(body)
        if self._direct is None:
            super().on_body(body)
        else:  # which is small, and waits for no event
            self.cycle.body += body

    def on_message_complete(self) -> None:
        """End a request."""
        if not self.parser.should_upgrade():
            self._arrival.stop()
            self._gathered.has_unread = False
            if self._direct is None:
                super().on_message_complete()
            self.cycle.more_body = False  # uvicorn leaves that out where the answer came first
            if self._direct is not None:
                self._take_direct(self.cycle)

    def on_headers_complete(self) -> None:
        """Start to answer, unless the head is too large or says two things at once."""
        self._is_in_head = False
        self._arrival.stop()
        n_bytes = sum(map(len, chain.from_iterable(self.headers)))
        self._head_bytes = len(self.url) + n_bytes + _PER_HEADER_BYTES * len(self.headers)
        self._require_small_head()
        require_one_meaning(self.parser.get_http_version(), self.headers)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise bad_request()
            if not self._should_upgrade():
                return  # it is read again without the offer
            require_handshake(self.parser.get_method(), self.headers, is_alone=self._is_idle)
        self._gathered.has_unread = True
        super().on_headers_complete()
        if self._is_ending and not self._ahead:
            self._close_after(self.cycle)

    def on_response_complete(self) -> None:
        """Send the answer, then look at what the client has sent meanwhile."""
        super().on_response_complete()
        if self._ahead:
            self.flow.pause_reading()
            self.loop.call_soon(self.data_received, b"")
        if self._is_ending and self._is_idle and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._ending.start(_SILENT_S, self._end)

    def shutdown(self) -> None:
        """
        Begin to end, once the server takes no more connections.

        A request may be on its way: an idle connection is closed only once its client has been
        silent for a second, and what still comes is answered. A busy one is closed after the
        answer. A request of which only a part is here is refused if the rest does not follow.
        """
        self._is_ending = True
        self._unset_keepalive_if_required()
        latest = self._latest
        if latest is not None and not latest.response_started:
            self._close_after(latest)
        is_silent = self._is_idle and not self._is_in_head
        self._ending.start(_SILENT_S if is_silent else _UNFINISHED_S, self._end)

    def pause_writing(self) -> None:
        """Hold answers back: the client reads more slowly than they are written."""
        super().pause_writing()
        self._gathered.await_reader(self._settings.send_timeout_s)

    def resume_writing(self) -> None:
        """Go on writing."""
        self._gathered.reader_is_back()
        super().resume_writing()

    @property
    def _is_queueing(self) -> bool:
        return self._is_ending or super()._is_queueing

    @property
    def _is_over(self) -> bool:
        """Whether nothing that still comes is for us."""
        return self._is_refusing or self._is_handed_over or self.transport.is_closing()

    @property
    def _is_idle(self) -> bool:
        """Whether no answer is due."""
        return self._latest is None or self._latest.response_complete

    def _close_after(self, cycle: RequestResponseCycle) -> None:
        """Close after the answer to the last request, and say so in it."""
        if self._closing is not None and not self._closing.response_started:
            self._closing.keep_alive = True  # it is not the last one any more
        self._closing = cycle if cycle.keep_alive else None
        cycle.keep_alive = False

    def _end(self) -> None:
        """Close a connection that is idle, or whose request does not arrive."""
        if self._is_refusing or self.transport.is_closing():
            return
        if self._is_in_head or (not self._is_idle and self.cycle.more_body):
            self._refuse(DrainingError())
        elif self._is_idle:
            self.transport.close()

    def _n_of_head(self, n_received: int) -> int:
        """Say how much of what was received belongs to the head that has not ended."""
        if not self._began_now:
            return n_received
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _bound_head(self, n_bytes: int) -> None:
        """Bound a head that has not ended with what has been received."""
        self._head_bytes += n_bytes
        try:
            self._require_small_head()
        except HTTPException as exc:
            self._refuse(exc)

    def _bound_framing(self, n_bytes: int) -> None:
        """Bound what comes with a body and is none of it: sizes and extensions of chunks."""
        self._framing_bytes += n_bytes
        allowed = self._settings.max_header_bytes + _FRAMING_BYTES * self._n_chunks
        if self._framing_bytes > allowed:
            self._refuse(bad_request())

    def _require_small_head(self) -> None:
        if self._head_bytes > self._settings.max_header_bytes:
            limit = self._settings.max_header_bytes
            raise HTTPException(431, f"The request's head is larger than {limit} bytes.")

    def _bound_wait(self) -> None:
        """Bound the wait for what the client owes us; idle, it owes the end of what it began."""
        if self._latest is not None and self._latest.more_body:
            spare_s = _SPARE_S if self._direct is None else 0.0
            self._arrival.start(self._settings.body_timeout_s + spare_s, self._is_late)
        elif self._is_in_head or (self._is_idle and not self._keep_alive.is_running):
            self._arrival.start(self._settings.head_timeout_s, self._is_late)

    def _is_late(self) -> None:
        latest = self._latest
        if self._is_in_head:
            self._refuse(HTTPException(408, "The request's head did not arrive in time."))
        elif latest is None or latest.response_complete:  # there is nothing to answer
            self.transport.close()
        elif self.flow.read_paused or latest.waiting_for_100_continue:  # it is we who are late
            self._bound_wait()
        elif self._direct is not None:
            self._direct.expire()
        else:
            self._refuse(HTTPException(408, "The request's body did not arrive in time."))

    def _refuse(self, error: HTTPException | DrainingError) -> None:
        """
        Answer what is no request, after the answers that are still due, and close.

        Answers go out in the order of the requests: an error must not be taken for the answer to
        an earlier request.
        """
        self._is_refusing = True
        self._gathered.has_unread = True  # more of it may be on its way
        self._arrival.stop()
        latest = self._latest
        if latest is None or latest.response_complete:
            self._write_refusal(error)
        elif latest is self._answering and latest.more_body:  # its own body is broken
            if latest.response_started:
                self.transport.close()
            else:
                self._write_refusal(error)
                self._leave()
        else:
            self._close_after_answers()

    def _close_after_answers(self) -> None:
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()  # the newest one can never be read to its end
        last = self.pipeline[0][0] if self.pipeline else self._answering
        if last is None or last.response_complete:
            self.transport.close()
        else:
            last.keep_alive = False

    def _write_refusal(self, error: HTTPException | DrainingError) -> None:
        self.transport.write(refusal(error, self._settings.request_id_header))
        self._gathered.linger()
