"""
Server-sent events: the bytes of an event, and the response that sends a stream of them.

Format: WHATWG HTML, section 9.2 "Server-sent events"; each event is `data: {json}`, the last one
`data: [DONE]`, as OpenAI's API has it. The first chunk is there before the response is made, so
errors before it have their own status; a later one is an event of its own, then `[DONE]`.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlserve.errors import AbandonedError, DrainingError, MLServeError
from mlserve.http.disconnect import DisconnectWatch
from mlserve.http.shutdown import LAST_WORDS_S, MODEL, is_shutdown
from mlserve.observability.loggers import get_logger

__all__ = ["DONE", "PING", "ChunkSource", "EventStreamResponse", "encode_event"]

logger = get_logger(__name__)

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

_GATHERED_BYTES = 65_536
_breaks_lines = re.compile(rb"[\r\n]").search


def encode_event(payload: bytes) -> bytes:
    r"""
    Frame one JSON text as an event. Pure.

    Args:
        payload: JSON as UTF-8; line breaks within it are framed as the format asks.

    Example:
        >>> encode_event(b'{"token": "a"}')
        b'data: {"token": "a"}\\n\\n'
    """
    if _breaks_lines(payload):
        lines = payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        return b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"
    return b"data: " + payload + b"\n\n"


class ChunkSource(Protocol):
    """Where the chunks of a stream come from, such as a `ModelStream`."""

    async def next(self, timeout_s: float) -> Any:
        """
        Give the next chunk.

        Raises:
            StopAsyncIteration: At the end.
            TimeoutError: If nothing came within `timeout_s` seconds; the stream goes on.
            MLServeError: What ended the stream before its end.
        """

    def ready(self) -> Iterable[Any]:
        """
        Give the chunks that are here already: they leave in one piece with the one before.

        Raises:
            MLServeError: What ended the stream after those that it has given.
        """

    async def aclose(self) -> None:
        """Leave; may be called again."""


class EventStreamResponse(Response):
    """
    Sends chunks as events, pings while idle, and stops its source when the client leaves.

    Args:
        stream: The chunks that are left.
        first: The event of the first chunk, or `None` if there is none.
        encode: Makes the JSON of a chunk.
        encode_error: Makes the JSON of the error that ended the stream.
        watch: Watches the client; stopped when the response has ended.
        ping_s: After how many idle seconds a ping is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        stream: ChunkSource,
        first: bytes | None,
        *,
        encode: Callable[[Any], bytes],
        encode_error: Callable[[MLServeError], bytes],
        watch: DisconnectWatch,
        ping_s: float,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._stream = stream
        self._first = first
        self._encode = encode
        self._encode_error = encode_error
        self._watch = watch
        self._ping_s = ping_s
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; the generator is told to close whatever happens."""
        try:
            await self._send_all(send)
        except OSError:  # how servers of ASGI 2.4 say that the client has left
            logger.debug("The client left while an event was being sent.")
        except asyncio.CancelledError as exc:
            if self._has_begun and is_shutdown(scope, exc):
                await self._end_cancelled(DrainingError(scope[MODEL]), send)
            raise
        finally:
            await self.aclose()
        if self.background is not None:
            await self.background()

    async def aclose(self) -> None:
        """End the stream: also one that is never sent, as what stands around it has failed."""
        self._watch.stop()
        await self._stream.aclose()

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        self._has_begun = True
        if self._first is not None:
            await _send_body(send, encode_event(self._first))
        gathered = b""
        try:
            while (event := await self._next_event()) is not None:
                gathered = event
                for chunk in self._stream.ready():
                    gathered += encode_event(self._encode(chunk))
                    if len(gathered) > _GATHERED_BYTES:
                        break  # the others wait for who reads
                await _send_body(send, gathered)
                gathered = b""
        except AbandonedError:
            return  # nobody is there to read an end
        except MLServeError as exc:
            gathered += encode_event(self._encode_error(exc))
        body = gathered + DONE
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _end_cancelled(self, error: MLServeError, send: Send) -> None:
        """End a stream whose task the server cancels, if its client reads."""
        body = encode_event(self._encode_error(error)) + DONE
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(LAST_WORDS_S):
                await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _next_event(self) -> bytes | None:
        """Give the next event, a ping when none came in time, or `None` at the end."""
        try:
            chunk = await self._stream.next(self._ping_s)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            return PING
        return encode_event(self._encode(chunk))


async def _send_body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
