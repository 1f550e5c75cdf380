"""
Running the sequences of a stepped handler: who enters, who leaves, and what each step has brought.

All hooks are called in the replica's own thread, a step at a time, so that its other tasks come in
between; the event loop is woken once per step, whatever the number of sequences.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mlserve.batching.report import BatchReport
from mlserve.errors import MLServeError, ModelOutputError, OutOfMemoryError, RequestError
from mlserve.execution.pipeline import Pipeline, as_answer
from mlserve.execution.recovery import free_memory, is_out_of_memory, let_go
from mlserve.execution.stages import run_here
from mlserve.execution.worker import Mailbox, Worker
from mlserve.job import Job
from mlserve.observability.loggers import get_logger
from mlserve.stepped import Advance, SteppedHandler
from mlserve.streaming import Channel

__all__ = ["Entry", "Stepper"]

logger = get_logger(__name__)

_MOST_UNREAD = 10_000


class Entry:
    """
    A request of a stepped handler, from its place in the replica to its end.

    Args:
        job: The request.
        channel: Takes its chunks; `None` = they are gathered for `postprocess`.
        done: Called on the event loop at its end, with its chunks and what ended it, if anything.
    """

    __slots__ = ("channel", "chunks", "done", "has_begun", "job", "key", "sequence", "started")

    def __init__(
        self,
        job: Job,
        channel: Channel[Any] | None,
        done: "Callable[[Entry, MLServeError | None], None]",
    ) -> None:
        self.job = job
        self.channel = channel
        self.done = done
        self.chunks: list[Any] = []
        """What was brought so far, or what is on its way to the channel."""
        self.has_begun = False
        """Whether anything was brought."""
        self.started = 0.0
        """When it was admitted, in monotonic seconds."""
        self.sequence: Any = None
        self.key: Hashable = None

    def __repr__(self) -> str:
        return f"<Entry {self.job!r}, {len(self.chunks)} chunks>"


class _News:
    """What a turn has brought for the event loop."""

    __slots__ = ("chunks", "ended", "has_failed")

    def __init__(self) -> None:
        self.chunks: list[tuple[Entry, Channel[Any], list[Any]]] = []
        self.ended: list[tuple[Entry, MLServeError | None]] = []
        self.has_failed = False


class Stepper:
    """
    Advances the sequences of one replica for as long as there are any.

    Args:
        handler: The handler, loaded.
        pipeline: Calls its hooks.
        worker: The replica's own thread.
        mailbox: The way back to the event loop.
        on_report: Told, on the event loop, when sequences have ended whether the model failed.
    """

    def __init__(
        self,
        handler: SteppedHandler[Any, Any, Any],
        pipeline: Pipeline,
        worker: Worker,
        mailbox: Mailbox,
        on_report: Callable[[BatchReport], None],
    ) -> None:
        self._handler = handler
        self._pipeline = pipeline
        self._worker = worker
        self._mailbox = mailbox
        self._on_report = on_report
        self._running: dict[Hashable, Entry] = {}  # the youngest last
        self._entering: deque[Entry] = deque()
        # Whether a turn is due; the lock is held for no longer than it takes to look.
        self._lock = threading.Lock()
        self._is_turning = False
        self._has_room = True
        self._is_held = False
        self._has_ended = asyncio.Event()

    def enter(self, entry: Entry) -> None:
        """Take in a request at the next step. Event loop only."""
        self._entering.append(entry)
        self._go_on()

    @asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """Let nobody enter within the context, which begins when all sequences have ended."""
        self._is_held = True
        try:
            self._has_ended.clear()
            while await self._worker.call(lambda: len(self._running)):
                await self._has_ended.wait()
                self._has_ended.clear()
            yield
        finally:
            self._is_held = False
            self._go_on()

    def _go_on(self) -> None:
        with self._lock:
            is_due = bool(self._entering) and not (self._is_turning or self._is_held)
            self._is_turning = self._is_turning or is_due
        if is_due:
            self._worker.submit_or(self._turn, self._fail_waiting)

    def _fail_waiting(self, error: MLServeError) -> None:
        """Answer those whom no thread will ever take in."""
        self._is_turning = False
        while self._entering:
            entry = self._entering.popleft()
            entry.done(entry, error)

    def _turn(self) -> None:
        """Let go whoever has left, take in who waits, and advance."""
        news = _News()
        for entry in [entry for entry in self._running.values() if entry.job.abandoned]:
            self._evict(entry, None, news)
        self._admit_waiting(news)
        if self._running:
            self._step(news)
        for entry in self._running.values():
            self._send_on(entry, news)
        if news.chunks or news.ended:
            self._mailbox.post(self._deliver, news)
        with self._lock:
            self._is_turning = bool(self._running or (self._entering and not self._is_held))
        if self._is_turning:
            self._worker.submit(self._turn)

    def _admit_waiting(self, news: _News) -> None:
        while self._entering and self._has_room and not self._is_held:
            entry = self._entering.popleft()
            if entry.job.abandoned:
                news.ended.append((entry, None))
                continue
            try:
                entry.sequence = run_here(self._pipeline.admit(entry.job), self._handler)
                entry.key = self._key_of_new(entry.sequence)
            except BaseException as exc:  # noqa: BLE001 - user code may raise anything
                if self._makes_room(exc):
                    self._entering.appendleft(entry)
                else:
                    news.ended.append(
                        (entry, as_answer(exc, "admit", self._pipeline.name, entry.job))
                    )
            else:
                entry.started = self._pipeline.clock()
                self._running[entry.key] = entry

    def _makes_room(self, error: BaseException) -> bool:
        """Say whether memory ran out and will be there again when a sequence has ended."""
        if not is_out_of_memory(error) or not self._running:
            return False
        self._release(error)
        self._has_room = False
        return True

    def _step(self, news: _News) -> None:
        while self._running:
            jobs = [entry.job for entry in self._running.values()]
            try:
                advances = run_here(self._pipeline.step(jobs), self._handler)
                self._take_all(advances, news)
            except BaseException as exc:  # noqa: BLE001 - user code may raise anything
                if len(jobs) > 1 and is_out_of_memory(exc):
                    self._release(exc)
                    self._give_way(news)
                    continue
                self._fail_all(exc, news)
            return

    def _release(self, error: BaseException) -> None:
        logger.warning("step.memory.exhausted", extra={"model": self._pipeline.name})
        let_go(error)
        free_memory()

    def _give_way(self, news: _News) -> None:
        """Take the youngest sequence out; it begins anew later unless it has told anything."""
        entry = next(reversed(self._running.values()))
        self._has_room = False
        if entry.has_begun:
            self._evict(entry, OutOfMemoryError(self._pipeline.name), news)
        elif (error := self._take_out(entry)) is not None:
            news.ended.append((entry, error))
        else:
            self._entering.appendleft(entry)

    def _take_all(self, advances: Sequence[Advance], news: _News) -> None:
        if isinstance(advances, Mapping | str) or not hasattr(advances, "__iter__"):
            raise ModelOutputError(
                f"`step` returned a value of type `{type(advances).__name__}`. Return a list of"
                " `Advance`, one for each sequence that there is news of."
            )
        for advance in advances:
            entry = self._running.get(self._key(advance.sequence))
            if entry is None:
                raise ModelOutputError(
                    "`step` gave an `Advance` for what is no sequence that runs. Give what `admit`"
                    " returned, until it has ended."
                )
            self._take(entry, advance, news)

    def _take(self, entry: Entry, advance: Advance, news: _News) -> None:
        try:
            chunks = [self._pipeline.contract.chunk.accept(chunk) for chunk in advance.chunks]
        except BaseException as exc:  # noqa: BLE001 - a validator of the handler's own
            error = as_answer(exc, "step", self._pipeline.name, entry.job)
            if advance.is_finished:
                self._end(entry, error, news)
            else:
                self._evict(entry, error, news)
            return
        if chunks:
            entry.has_begun = True
            entry.chunks += chunks
        if advance.error is not None:
            self._end(entry, as_answer(advance.error, "step", self._pipeline.name, entry.job), news)
        elif advance.is_finished:
            self._end(entry, None, news)

    def _send_on(self, entry: Entry, news: _News) -> None:
        if entry.channel is not None and entry.chunks:
            news.chunks.append((entry, entry.channel, entry.chunks))
            entry.chunks = []

    def _end(self, entry: Entry, error: MLServeError | None, news: _News) -> None:
        self._running.pop(entry.key, None)
        self._has_room = True
        times = entry.job.times
        times.infer_at, times.infer_s = entry.started, self._pipeline.clock() - entry.started
        self._send_on(entry, news)
        news.ended.append((entry, error))

    def _evict(self, entry: Entry, error: MLServeError | None, news: _News) -> None:
        self._take_out(entry)
        self._end(entry, error, news)

    def _take_out(self, entry: Entry) -> MLServeError | None:
        """Have the handler forget a sequence; what it raises is logged."""
        del self._running[entry.key]
        try:
            run_here(self._pipeline.evict(entry.sequence), self._handler)
        except BaseException as exc:  # noqa: BLE001 - user code may raise anything
            return as_answer(exc, "evict", self._pipeline.name, entry.job)
        return None

    def _fail_all(self, error: BaseException, news: _News) -> None:
        """End every sequence: nobody knows which of them was at fault."""
        self._pipeline.note_error(error)
        news.has_failed = True
        answer = as_answer(error, "step", self._pipeline.name)
        if len(self._running) > 1 and isinstance(answer, OutOfMemoryError):
            answer = OutOfMemoryError(self._pipeline.name, len(self._running))
        for entry in list(self._running.values()):
            self._evict(entry, answer, news)

    def _key_of_new(self, sequence: Any) -> Hashable:
        key = self._key(sequence)
        if key in self._running:
            raise ModelOutputError(
                "`admit` gave what stands for a sequence already that runs. Give an object for"
                " each one."
            )
        return key

    def _key(self, sequence: Any) -> Hashable:
        try:
            hash(sequence)
        except TypeError:
            return id(sequence)
        key: Hashable = sequence
        return key

    def _deliver(self, news: _News) -> None:
        for entry, channel, chunks in news.chunks:
            if channel.extend(chunks) > _MOST_UNREAD:
                channel.abort(RequestError("The chunks of the stream were not read in time."))
                entry.job.call.cancel()
        for entry, error in news.ended:
            entry.done(entry, error)
        if news.ended:
            self._has_ended.set()
            self._on_report(BatchReport(has_failed=news.has_failed))

    def __repr__(self) -> str:
        return f"<Stepper {len(self._running)} sequences, {len(self._entering)} wait>"
