"""
The wire between our own processes: messages of a turn in one write, sockets passed along.

Each wire is a private `socket.socketpair()`; nothing of it can be reached from outside.
"""

import asyncio
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from mlserve.observability.loggers import get_logger
from mlserve.processes.frames import (
    MAX_MESSAGES,
    Buffer,
    Decoder,
    Message,
    WireError,
    encode,
)

__all__ = [
    "LAST_WORDS_S",
    "Link",
    "Message",
    "WireError",
    "connect",
    "recv_socket",
    "send_socket",
]

logger = get_logger(__name__)

LAST_WORDS_S = 1.0
"""How long what one end has said last may be on its way, in seconds."""

_WRITTEN_BYTES = 1 << 18
_UNSENT_BYTES = 1 << 20
_TAG = struct.Struct("<Q")
# Without it a descriptor could reach a program that another thread starts meanwhile.
_CLOEXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Link(asyncio.BufferedProtocol):
    """
    One end of a wire, on the event loop; `connect` gives it its socket.

    Args:
        on_messages: Takes the messages of each read. What it raises is logged.
        on_lost: Called once, when the connection has ended, whoever ended it; all messages that
            the other end had sent were delivered before, unless this end closed.
        on_writable: Called when the link is no longer congested.
    """

    sock: socket.socket | None = None
    """Its end of the pair; set by `connect`, closed by the event loop."""

    def __init__(
        self,
        on_messages: Callable[[list[Message]], None],
        on_lost: Callable[[], None],
        on_writable: Callable[[], None] | None = None,
    ) -> None:
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._on_writable = on_writable
        self._decoder = Decoder()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: asyncio.Transport | None = None
        self._pending: list[Message] = []
        # Parts of frames that the transport has not taken: empty unless it is congested.
        self._unsent: deque[Buffer] = deque()
        self._paused = False
        self._closing = False
        self._is_readable = True
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        state = "closed" if self._closing else "congested" if self._paused else "open"
        return f"<Link [{state}, {len(self._pending)} messages wait]>"

    @property
    def is_congested(self) -> bool:
        """Whether the other end does not read fast enough: hold back until `on_writable`."""
        return self._paused

    def send(self, message: Message) -> None:
        """
        Send a message with all others of this turn of the event loop.

        It never blocks and keeps what cannot be sent yet; on a closed link it does nothing. A
        message that cannot be pickled is logged and lost: what may fail is to be packed.
        """
        if self._closing:
            return
        self._pending.append(message)
        if len(self._pending) >= MAX_MESSAGES:
            self.flush()
        elif len(self._pending) == 1 and self._loop is not None:
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send now what was gathered, as far as the link is not congested."""
        if not (self._pending or self._unsent or self._closing):
            return
        transport = self._transport
        while transport is not None and not self._paused and not transport.is_closing():
            if self._unsent:
                transport.write(self._next_part())
            elif self._pending:
                batch, self._pending = self._pending[:MAX_MESSAGES], self._pending[MAX_MESSAGES:]
                self._encode(batch)
            else:
                if self._closing:
                    transport.close()
                break

    def close(self) -> None:
        """End the connection at once; what was not sent is lost, `on_lost` follows."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    async def drain_and_close(self, timeout_s: float) -> None:
        """
        Send everything, then end the connection; returns after `on_lost` was called.

        Args:
            timeout_s: After how many seconds what is not sent is given up.
        """
        self._closing = True
        if self._transport is None:
            return
        self.flush()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), timeout_s)
        finally:
            self.close()
        await self._ended.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to send; called by the event loop."""
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no such class
        self._transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Give the memory to receive into; called by the event loop."""
        return self._decoder.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Deliver the messages that were received; called by the event loop."""
        try:
            self._decoder.advance(nbytes)
        except (WireError, MemoryError):
            logger.exception("link.receive.failed")
            self._is_readable = False
            self.close()
        if messages := self._decoder.take():
            self._tell(self._on_messages, messages)

    def eof_received(self) -> None:
        """End the connection, as nobody is left to read; called by the event loop."""
        self.close()

    def pause_writing(self) -> None:
        """Hold back what is sent; called by the event loop."""
        self._paused = True

    def resume_writing(self) -> None:
        """Send what was held back; called by the event loop."""
        self._paused = False
        self.flush()
        if not self._paused and not self._closing and self._on_writable is not None:
            self._tell(self._on_writable)

    def connection_lost(self, exc: Exception | None) -> None:
        """Deliver what the other end still sent and say that it is gone; called by the loop."""
        self._closing = True
        self._paused = False
        self._transport = None
        self._pending.clear()
        self._unsent.clear()
        if exc is not None:
            self._receive_rest()
        self._ended.set()
        self._tell(self._on_lost)
        # Whoever is told here mostly holds the link, and neither would be freed at once.
        self._on_messages = self._on_lost = self._on_writable = _nothing

    def _receive_rest(self) -> None:
        """Read what a process sent before it died: a write that fails may be noticed first."""
        if self.sock is None:
            return
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # so that reading ends
            while self._is_readable and (n := self.sock.recv_into(self._decoder.buffer())):
                self.buffer_updated(n)

    def _encode(self, messages: list[Message]) -> None:
        try:
            self._unsent += encode(messages)
        except Exception:
            if len(messages) == 1:
                logger.exception("link.send.failed", extra={"kind": messages[0][0]})
                return
            for message in messages:
                self._encode([message])

    def _next_part(self) -> Buffer:
        """Give as much as may be written at once: event loops may copy what they are given."""
        part = self._unsent.popleft()
        if len(part) <= _WRITTEN_BYTES:
            return part
        view = memoryview(part)
        self._unsent.appendleft(view[_WRITTEN_BYTES:])
        return view[:_WRITTEN_BYTES]

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            callback(*args)
        except Exception:
            logger.exception("link.callback.failed")


def _nothing(*_: Any) -> None:
    """Nobody is told any more."""


async def connect(sock: socket.socket, link: Link) -> None:
    """
    Hand one end of a pair to the running event loop, asyncio's or uvloop's.

    Args:
        sock: An end of `socket.socketpair()`; the event loop owns it from now on.
        link: A new link.
    """
    sock.setblocking(False)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, _UNSENT_BYTES)
    link.sock = sock
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)


def send_socket(channel: socket.socket, tag: int, sock: socket.socket) -> None:
    """
    Pass a connected socket to the process at the other end; this one may close its own.

    Args:
        channel: An end of `socket.socketpair()` that carries nothing else.
        tag: What it is, from 0 to 2**64 - 1.
        sock: The socket.

    Raises:
        BlockingIOError: If the channel does not block and is full: try again later.
        OSError: If the other end is gone.
    """
    socket.send_fds(channel, [_TAG.pack(tag)], [sock.fileno()])


def recv_socket(channel: socket.socket) -> tuple[int, socket.socket] | None:
    """
    Take a socket that was passed; programs that are started do not inherit it.

    Returns:
        Its tag and the socket; `None` when the other end is gone.

    Raises:
        BlockingIOError: If the channel does not block and holds nothing.
        OSError: If the socket did not arrive, as too many files are open; the next one may.
    """
    record, control, _, _ = channel.recvmsg(_TAG.size, socket.CMSG_LEN(4), _CLOEXEC)
    if len(record) < _TAG.size:
        return None
    if not control:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    (descriptor,) = struct.unpack("i", control[0][2])
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    return _TAG.unpack(record)[0], sock
