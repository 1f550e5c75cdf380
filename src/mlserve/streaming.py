"""
Streams: the bounded channel between a generator's thread and the event loop, and its reader.

A full channel holds its own producer back, never anybody else; a consumer that leaves wakes the
producer at once and tells it to stop.
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from mlserve.errors import DeadlineExceededError
from mlserve.job import Job
from mlserve.settings import Limits

__all__ = ["Channel", "ChannelClosed", "ChannelSink", "ModelStream"]

ItemT = TypeVar("ItemT")


class ChannelClosed(Exception):  # noqa: N818 - the regular end of a channel, not an error
    """Raised by `get` when the producer has ended and everything was read."""


class Channel(Generic[ItemT]):
    """
    One producer in any thread, one consumer on the event loop.

    Args:
        loop: The consumer's event loop.
        capacity: How many items may wait to be read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, capacity: int = 32) -> None:
        self._loop = loop
        self._capacity = capacity
        # The producer appends, the consumer pops. A producer that finds no room says so before it
        # looks again and waits, so that only then there is somebody to be woken.
        self._items: deque[ItemT] = deque()
        self._has_room = threading.Event()
        self._has_room.set()
        self._has_space = asyncio.Event()
        self._waiter: asyncio.Future[bool] | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._closed = False
        self.on_taken: Callable[[], None] | None = None
        """Called on the event loop for each item that was read."""

    @property
    def is_closed(self) -> bool:
        """Whether the consumer has left."""
        return self._closed

    def put(self, item: ItemT) -> bool:
        """Hand over an item; blocks while the channel is full. `False` = stop, nobody reads."""
        while len(self._items) >= self._capacity and self._is_full:  # which asks for more
            self._has_room.clear()
            if self._is_full:
                self._has_room.wait()
        return self._append(item)

    async def aput(self, item: ItemT) -> bool:
        """Hand over an item from a producer on the event loop; as `put`, but awaits."""
        while self._is_full:
            self._has_space.clear()
            await self._has_space.wait()
        return self._append(item)

    def extend(self, items: Sequence[ItemT]) -> int:
        """Hand over several items, however many wait, and say how many do. Event loop only."""
        if not (self._closed or self._ended):
            self._items.extend(items)
            self._wake()
        return len(self._items)

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes, or that it ended in an error. Any thread; once."""
        if not self._ended:
            self._error = error
            self._ended = True
            if self._waiter is not None:
                self._notify()

    def abort(self, error: BaseException) -> None:
        """End the stream from the reader's side: the producer is told to stop. Event loop only."""
        self.end(error)
        self._make_room()

    async def get(self, timeout_s: float | None = None) -> ItemT:
        """
        Take the next item. Event loop only.

        Raises:
            ChannelClosed: When the producer has ended.
            TimeoutError: When nothing came within `timeout_s` seconds; nothing is lost then.
            BaseException: What the producer gave to `end`, after all items were read.
        """
        end_at = None if timeout_s is None else self._loop.time() + timeout_s
        is_late = False
        while not self._items:
            if self._ended and not self._items:
                raise self._error if self._error is not None else ChannelClosed
            if is_late:
                raise TimeoutError
            is_late = await self._wait(end_at)
        item = self._items.popleft()
        self._make_room()
        if self.on_taken is not None:
            self.on_taken()
        return item

    def take(self) -> Iterator[ItemT]:
        """Take what waits to be read, one by one, and wait for nothing. Event loop only."""
        items = self._items
        try:
            for _ in range(len(items)):  # whoever is quick may add to them for ever
                item = items.popleft()
                if self.on_taken is not None:
                    self.on_taken()  # before: who has it may ask for no other one
                yield item
        finally:
            self._make_room()

    def close(self) -> None:
        """Leave: the producer is woken and told to stop. Event loop only."""
        if not self._closed:
            self._closed = True
            self._items.clear()
            self._error = None  # its traceback may hold who reads here
            self._make_room()

    @property
    def _is_full(self) -> bool:
        """Whether a producer has to wait; one that is to stop has not."""
        return len(self._items) >= self._capacity and not (self._closed or self._ended)

    def _make_room(self) -> None:
        # Not for each place: the producer's thread would take turns with the loop for every item.
        if len(self._items) <= self._capacity // 2 or self._closed or self._ended:
            if not self._has_room.is_set():
                self._has_room.set()
            self._has_space.set()

    def _append(self, item: ItemT) -> bool:
        if self._closed or self._ended:
            return False
        self._items.append(item)
        if self._waiter is not None:
            self._notify()
        return True

    def _notify(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self._closed = True

    def _wake(self, *, is_late: bool = False) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(is_late)

    async def _wait(self, end_at: float | None) -> bool:
        """
        Wait for a wake-up and say whether it was the timeout's.

        A wake-up may be that of an item which was read already: the caller has to look again.
        """
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiter = waiter
        # The producer may have added something before it could see the waiter: look again.
        if self._items or self._ended:
            self._waiter = None
            return False
        timer = None
        if end_at is not None:
            timer = self._loop.call_at(end_at, partial(self._wake, is_late=True))
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self._ended else "open"
        return f"<Channel {len(self._items)} of {self._capacity}, {state}>"


class ChannelSink:
    """The sink of a streamed job: an error ends its channel."""

    def __init__(self, channel: Channel[Any]) -> None:
        self._channel = channel

    def result(self, value: Any) -> None:
        """Streams have no single result: the channel's end is theirs."""
        self._channel.end()

    def fail(self, error: BaseException) -> None:
        """End the channel with the error, after what is already in it."""
        self._channel.abort(error)


class ModelStream:
    """
    The chunks of one request, as they come. Event loop only; read by one reader.

    Use it as a context manager, or call `aclose`, so that the generator is told when nobody
    reads any more.

    Args:
        job: The request.
        channel: Where its chunks arrive.
        limits: How long the first and each further chunk may take.
        clock: Gives monotonic seconds.
        on_close: Called once, when the reader has ended or left.
    """

    def __init__(
        self,
        job: Job,
        channel: Channel[Any],
        limits: Limits,
        clock: Callable[[], float],
        on_close: Callable[[Job], None],
    ) -> None:
        self.job = job
        self._channel = channel
        self._limits = limits
        self._clock = clock
        self._on_close = on_close
        self._last_at = clock()
        self._is_closed = False

    def ready(self) -> Iterator[Any]:
        """Give the chunks that are here already, without waiting for any."""
        for chunk in self._channel.take():
            self._last_at = self._clock()
            self.job.times.chunks += 1
            yield chunk

    async def next(self, timeout_s: float = math.inf) -> Any:
        """
        Give the next chunk.

        Raises:
            StopAsyncIteration: At the end.
            TimeoutError: If nothing came within `timeout_s` seconds; the stream goes on.
            MLServeError: What ended the stream before its end.
        """
        allowed_s = self._limits.idle_s if self.job.times.chunks else self._limits.first_chunk_s
        left_s = math.inf if allowed_s is None else self._last_at + allowed_s - self._clock()
        wait_s = min(left_s, timeout_s)
        try:
            chunk = await self._channel.get(None if math.isinf(wait_s) else max(0.0, wait_s))
        except ChannelClosed:
            await self.aclose()
            raise StopAsyncIteration from None
        except TimeoutError:
            if left_s > timeout_s or allowed_s is None:
                raise
            await self.aclose()
            raise DeadlineExceededError(self.job.stage, allowed_s) from None
        except BaseException:
            await self.aclose()
            raise
        self._last_at = self._clock()
        self.job.times.chunks += 1
        return chunk

    async def aclose(self) -> None:
        """Leave: the generator is closed in its own thread, at its next `yield`."""
        if not self._is_closed:
            self._is_closed = True
            self.job.call.cancel()
            self._channel.close()
            self._on_close(self.job)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self.next()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
