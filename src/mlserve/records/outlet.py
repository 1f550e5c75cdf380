"""
The way to one sink: a bounded queue, and a task that writes what is in it.

Nothing here waits for a request, and no request waits for it: what finds no room is dropped and
counted. Everything runs on the event loop but what takes long with payloads, for which the outlet
has a thread.
"""

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from mlserve.execution.backoff import backoff_s
from mlserve.execution.worker import TaskSet
from mlserve.observability.listeners import Ended
from mlserve.observability.loggers import get_logger
from mlserve.observability.metrics import note_records
from mlserve.records.record import InferenceRecord, payload_bytes, record_of, slimmed
from mlserve.records.redaction import redacted
from mlserve.records.sink import Sink, is_sampled
from mlserve.records.thread import OwnThread

__all__ = ["Outlet"]

logger = get_logger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_PATIENCE_S = 1.0
_SAY_AGAIN_S = 60.0
_STUBBORN = 3  # a call that ignores that it is cancelled, the wait for it, and `close` likewise

ResultT = TypeVar("ResultT")


class Outlet:
    """
    Brings records to one sink, in their order.

    Args:
        sink: The sink.
        name: Its name in metrics and `/ready`.
    """

    def __init__(self, sink: Sink, name: str) -> None:
        self.sink = sink
        self.name = name
        self.options = sink.options
        self.counts = dict.fromkeys(("written", "dropped", "failed"), 0)
        """How many records were written, found no room, and could not be written."""
        self.state = "closed"
        """`opening`, `ready`, `failing` or `closed`."""
        # What waits, and the size of its payloads; only changed on the event loop.
        self._waiting: deque[Ended] = deque()
        self._n_bytes = 0
        self._is_closing = False
        self._n_writing = 0
        self._said_at: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = OwnThread(f"mlserve-records-{name}")
        for outcome in self.counts:
            note_records(name, outcome, 0)

    @property
    def is_missed(self) -> bool:
        """Whether it is one without which the server should get no requests, and does not write."""
        return self.options.required and self.state != "ready"

    @property
    def n_waiting(self) -> int:
        """How many records are not written yet."""
        return len(self._waiting) + self._n_writing

    def put(self, ended: Ended) -> None:
        """Queue a request if it is among those that the sink gets; drop it if there is no room."""
        options = self.options
        if not is_sampled(ended.line["request_id"], options.sample):
            return
        ended = slimmed(ended, keep_payloads=options.keep_payloads)
        n_bytes = self._n_bytes + payload_bytes(ended)
        is_full = len(self._waiting) >= options.max_queue or n_bytes > options.max_queue_bytes
        if self._task is None or is_full:
            self._drop(1)
            return
        self._waiting.append(ended)
        self._n_bytes = n_bytes
        if len(self._waiting) in (1, options.batch_size):
            self._changed.set()

    def open(self) -> None:
        """Begin to write, on the event loop that runs now."""
        self._is_closing = False
        self._changed = asyncio.Event()
        self._thread.open()
        self.state = "opening"
        self._task = TaskSet().spawn(self._run())

    def finish(self) -> "asyncio.Task[None] | None":
        """Take in nothing more, and end once all is written; gives the task that does it."""
        self._is_closing = True
        self._changed.set()
        task, self._task = self._task, None
        return task

    async def abandon(self, task: "asyncio.Task[None] | None") -> None:
        """End the task; what is still not written is dropped."""
        for _ in range(_STUBBORN):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=_PATIENCE_S)
        self._thread.close()
        if n_left := self.n_waiting:
            logger.error("records.lost", extra={"sink": self.name, "n_records": n_left})
            self._drop(n_left)
        self._waiting.clear()
        self._n_bytes = self._n_writing = 0
        self.state = "closed"

    async def _run(self) -> None:
        try:
            is_open = await self._open()
            while is_open and await self._gather():
                await self._write(self._take())
        finally:
            try:
                await self._bounded(self.sink.close())
            except Exception:
                logger.exception("sink.close.failed", extra={"sink": self.name})

    async def _open(self) -> bool:
        """Open the sink, however often that takes; records gather meanwhile."""
        for n_failed in itertools.count():
            try:
                await self._bounded(self.sink.open())
            except Exception as exc:  # noqa: BLE001 - sinks raise what they like
                self._note_failure("sink.open.failed", exc)
            else:
                self._note_success()
                break
            await self._pause(n_failed)
            if self._is_closing:
                return False
        return True

    async def _gather(self) -> bool:
        """Wait for a batch; give whether there is anything to write."""
        options = self.options
        while not (self._waiting or self._is_closing):
            self._changed.clear()
            await self._changed.wait()
        end = time.monotonic() + options.max_wait_s
        while len(self._waiting) < options.batch_size and not self._is_closing:
            self._changed.clear()
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                break
        return bool(self._waiting)

    def _take(self) -> list[Ended]:
        n = min(len(self._waiting), self.options.batch_size)
        taken = [self._waiting.popleft() for _ in range(n)]
        self._n_bytes -= sum(map(payload_bytes, taken))
        self._n_writing = n
        return taken

    async def _write(self, taken: list[Ended]) -> None:
        """Write a batch, in several tries if need be; then it is counted and forgotten."""
        records = await self._made(taken)
        n_written = len(records) if records and await self._has_written(records) else 0
        self._count("written", n_written)
        self._count("failed", len(taken) - n_written)
        self._n_writing = 0

    async def _has_written(self, records: Sequence[InferenceRecord]) -> bool:
        for n_failed in range(self.options.max_tries):
            if n_failed:
                await self._pause(n_failed - 1)
                if self._is_closing:
                    break
            try:
                await self._bounded(self.sink.write(records))
            except Exception as exc:  # noqa: BLE001 - sinks raise what they like
                self._note_failure("sink.write.failed", exc)
            else:
                self._note_success()
                return True
        if self._may_say("records.failed"):
            logger.error("records.failed", extra={"sink": self.name, **self.counts})
        return False

    async def _made(self, taken: list[Ended]) -> list[InferenceRecord]:
        """Make the records of a batch, without those that could not be redacted."""
        if not self.options.reads_payloads:
            return self._make(taken)
        try:
            return await self._bounded(self._thread.call(lambda: self._make(taken)))
        except Exception as exc:  # noqa: BLE001 - a redaction that hangs, or no further thread
            self._note_failure("record.redact.failed", exc)
            return []

    def _make(self, taken: list[Ended]) -> list[InferenceRecord]:
        records = []
        for ended in taken:
            try:
                record = record_of(ended, keep_payloads=self.options.keep_payloads)
                records.append(self._redacted(record))
            except Exception:
                if self._may_say("record.redact.failed"):
                    logger.exception("record.redact.failed", extra={"sink": self.name})
        return records

    def _redacted(self, record: InferenceRecord) -> InferenceRecord:
        redact = self.options.redact
        if callable(redact):
            record = redact(record)
            if not isinstance(record, InferenceRecord):
                raise TypeError(f"`redact` must return the record, got {type(record).__name__}.")
        elif redact:
            record = replace(
                record,
                request=redacted(record.request, redact),
                response=redacted(record.response, redact),
            )
        return record

    async def _bounded(self, call: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Await a call for as long as it may take; never begin another beside it."""
        task = asyncio.get_running_loop().create_task(_as_exception(call))
        try:
            await asyncio.wait((task,), timeout=self.options.write_timeout_s)
        finally:
            if not task.done():
                task.cancel()
                self._note_failure("sink.call.hangs", TimeoutError())
                await asyncio.wait((task,))
        if task.cancelled():
            raise TimeoutError(f"It did not end within {self.options.write_timeout_s} s.")
        return task.result()

    async def _pause(self, n_pauses: int) -> None:
        """Wait before the next try; a shutdown ends the wait."""
        end = time.monotonic() + backoff_s(n_pauses, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while not self._is_closing and (left_s := end - time.monotonic()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _note_failure(self, event: str, error: Exception) -> None:
        if self.state != "failing" and self._may_say(event):
            logger.error(event, exc_info=error, extra={"sink": self.name})
        self.state = "failing"

    def _note_success(self) -> None:
        if self.state == "failing" and self._may_say("sink.recovered"):
            logger.info("sink.recovered", extra={"sink": self.name})
        self.state = "ready"

    def _drop(self, n: int) -> None:
        self._count("dropped", n)
        if self._may_say("records.dropped"):
            logger.warning("records.dropped", extra={"sink": self.name, **self.counts})

    def _may_say(self, event: str) -> bool:
        """Whether it is time for a line in the log: one a minute of each kind, metrics have all."""
        now = time.monotonic()
        is_due = now - self._said_at.get(event, -math.inf) > _SAY_AGAIN_S
        if is_due:
            self._said_at[event] = now
        return is_due

    def _count(self, outcome: str, n: int) -> None:
        if n:
            self.counts[outcome] += n
            note_records(self.name, outcome, n)

    def __repr__(self) -> str:
        return f"<Outlet {self.name} {self.state}, {self.n_waiting} waiting>"


async def _as_exception(call: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await a call; one that asks the process to end fails only itself."""
    try:
        return await call
    except (Exception, asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as exc:
        raise RuntimeError(f"A sink raised {type(exc).__name__}.") from exc
