"""Sinks that call a function."""

import asyncio
import functools
import inspect
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mlserve.errors import ConfigurationError
from mlserve.observability.loggers import get_logger
from mlserve.records.record import InferenceRecord
from mlserve.records.sink import SinkOptions
from mlserve.records.thread import OwnThread

__all__ = ["CallbackSink", "EveryN"]

logger = get_logger(__name__)

_MOST_DUE = 64

Callback = Callable[[InferenceRecord], Any]


class CallbackSink:
    """
    Calls a function with each record, one after the other.

    A function runs in a thread of the sink's own, a coroutine function on the server's event loop.
    Each record is given to it once, whatever it raises; `batch_size`, `max_wait_s` and `max_tries`
    have no meaning here.

    Args:
        callback: The function.
        options: What it gets.

    Raises:
        ConfigurationError: If it cannot be called.

    Example:
        >>> sink = CallbackSink(lambda record: print(record.model, record.status))
    """

    def __init__(self, callback: Callback, *, options: SinkOptions | None = None) -> None:
        self._call = _Call(callback)
        self.options = replace(options or SinkOptions(), batch_size=1, max_wait_s=0.0, max_tries=1)
        """What it gets."""

    async def open(self) -> None:
        """Prepare to call."""
        self._call.open()

    async def write(self, records: Sequence[InferenceRecord]) -> None:
        """
        Call the function with each record.

        Raises:
            Exception: What the function raises.
        """
        for record in records:
            await self._call(record)

    async def close(self) -> None:
        """End the thread."""
        self._call.close()

    def __repr__(self) -> str:
        return f"<CallbackSink {self._call.name}>"


class EveryN:
    """
    Calls a function after every so many records of a model and version, for instance to retrain.

    It is called with the last one of them, where `CallbackSink` would call it, and may take as long
    as it likes: records are counted meanwhile, and the calls that become due follow one after the
    other, the latest 64 of them. Each process counts the requests that it has answered, from nought
    at its start.

    Args:
        n: After how many.
        callback: The function.
        options: What is counted.

    Raises:
        ConfigurationError: If `n` is not at least 1 or the function cannot be called.

    Example:
        >>> sink = EveryN(1000, lambda record: print("retrain", record.model))
    """

    def __init__(self, n: int, callback: Callback, *, options: SinkOptions | None = None) -> None:
        if type(n) is not int or n < 1:
            raise ConfigurationError(f"`n` must be a whole number of at least 1, got {n!r}.")
        self._n = n
        self._call = _Call(callback)
        self.options = options or SinkOptions()
        """What is counted."""
        self._counts: Counter[tuple[str, str]] = Counter()
        self._due: deque[InferenceRecord] = deque(maxlen=_MOST_DUE)
        self._calling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to count."""
        self._counts.clear()
        self._due.clear()
        self._call.open()

    async def write(self, records: Sequence[InferenceRecord]) -> None:
        """Count the records, and begin a call if one is due."""
        for record in records:
            key = record.model, record.version
            self._counts[key] += 1
            if self._counts[key] % self._n == 0:
                self._due.append(record)
        if self._due and (self._calling is None or self._calling.done()):
            self._calling = asyncio.get_running_loop().create_task(self._make_calls())

    async def close(self) -> None:
        """Wait for the call that runs, for as long as the shutdown leaves."""
        try:
            if self._calling is not None:
                await asyncio.wait((self._calling,))
        finally:
            self._call.close()
            if self._calling is not None:
                self._calling.cancel()

    async def _make_calls(self) -> None:
        while self._due:
            record = self._due.popleft()
            try:
                await self._call(record)
            except Exception:
                logger.exception("callback.failed", extra={"model": record.model})

    def __repr__(self) -> str:
        return f"<EveryN {self._n} {self._call.name}>"


class _Call:
    """Calls a function in a thread, and a coroutine function on the event loop."""

    def __init__(self, callback: Callback) -> None:
        if not callable(callback):
            raise ConfigurationError(
                f"The callback must be a function of a record, got {callback!r}."
            )
        inner = callback
        while isinstance(inner, functools.partial):
            inner = inner.func
        self._is_async = any(map(inspect.iscoroutinefunction, (inner, type(inner).__call__)))
        self._callback = callback
        self.name = getattr(inner, "__name__", type(inner).__name__)
        self._thread = OwnThread(f"mlserve-callback-{self.name}")

    def open(self) -> None:
        self._thread.open()

    async def __call__(self, record: InferenceRecord) -> None:
        if self._is_async:
            await self._callback(record)
        else:
            await self._thread.call(lambda: self._callback(record))

    def close(self) -> None:
        self._thread.close()
