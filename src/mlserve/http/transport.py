"""What is between uvicorn and a socket: gathered writes and a close that loses nothing."""

import asyncio
from collections.abc import Iterable
from typing import Any

from mlserve.http.timer import Timer
from mlserve.observability.loggers import get_logger

__all__ = ["GatheredTransport"]

logger = get_logger(__name__)

_WRITTEN_ALONE_BYTES = 65_536
_LINGER_S = 1.0


class GatheredTransport(asyncio.Transport):
    """
    Joins what is written in one turn of the event loop, so that it reaches the client at once.

    Each write wakes the client, and an answer that comes in two would wake it for half of one.
    Closing can linger: a system that closes a socket with unread data in it resets the
    connection, and the client may lose the answer that was on its way.

    Args:
        transport: The connection's own.
        loop: Its event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._parts: list[Any] = []
        self._closer: asyncio.TimerHandle | None = None
        self._reader = Timer(loop)
        self.has_unread = False
        """Whether the client still sends; closing lingers then."""

    def linger(self) -> None:
        """Write what was gathered and say so; close once the client has, or after a second."""
        if self.is_closing():
            return
        self.flush()
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        self._closer = self._loop.call_later(_LINGER_S, self._transport.close)
        self._transport.resume_reading()

    @property
    def has_parts(self) -> bool:
        """Whether something was gathered that is not written yet."""
        return bool(self._parts)

    def flush(self) -> None:
        """Write now what was gathered."""
        if self._parts:
            parts, self._parts = self._parts, []
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def write(self, data: Any) -> None:
        """Write before the event loop's next turn; large data is not copied."""
        if len(data) >= _WRITTEN_ALONE_BYTES:
            self.flush()
            self._transport.write(data)
            return
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def write_now(self, data: bytes) -> None:
        """Write at once, behind what was gathered: a whole answer waits for nothing."""
        if self._parts:
            self.flush()
        self._transport.write(data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Write several pieces."""
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        """Write what was gathered and close; lingers while the client still sends."""
        if self.has_unread:
            self.linger()
        elif self._closer is None:
            self.flush()
            self._transport.close()

    def await_reader(self, patience_s: float) -> None:
        """Abort once the client has read nothing for so long, until `reader_is_back`."""
        unsent = self.get_write_buffer_size()

        def look() -> None:
            if self.get_write_buffer_size() < unsent:
                self.await_reader(patience_s)
            else:
                logger.info("connection.send.timed_out")
                self.abort()

        self._reader.start(patience_s, look)

    def reader_is_back(self) -> None:
        """Note that the client has read what there was."""
        self._reader.stop()

    def lost(self) -> None:
        """Note that the connection has ended."""
        self._reader.close()
        self._parts.clear()
        self._stop_lingering()

    def abort(self) -> None:
        """Close at once; what was gathered is lost."""
        self._parts.clear()
        self._stop_lingering()
        self._transport.abort()

    def can_write_eof(self) -> bool:
        """Whether the writing half can be closed alone."""
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        """Write what was gathered and close the writing half."""
        self.flush()
        self._transport.write_eof()

    def is_closing(self) -> bool:
        """Whether it is closed or being closed."""
        return self._closer is not None or self._transport.is_closing()

    def is_reading(self) -> bool:
        """Whether data is being received."""
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        """Receive nothing more for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Say something of the connection."""
        return self._transport.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Give who receives the data."""
        return self._transport.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Change who receives the data."""
        self._transport.set_protocol(protocol)

    def get_write_buffer_size(self) -> int:
        """Say how many bytes wait to be sent."""
        waiting = sum(len(part) for part in self._parts)
        return waiting + self._transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Give the marks between which the protocol is told to pause and resume."""
        return self._transport.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set those marks."""
        self._transport.set_write_buffer_limits(high, low)

    def _stop_lingering(self) -> None:
        if self._closer is not None:
            self._closer.cancel()
