"""Several jobs of one request: all answers, or all chunks as they come. Event loop only."""

import asyncio
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from mlserve.engine import Engine
from mlserve.execution.worker import TaskSet
from mlserve.job import Job
from mlserve.protocols.openai.chunks import Writer
from mlserve.streaming import ModelStream

__all__ = ["Events", "Merged", "predict_all", "stream_all"]

_FULL_BATCHES = 2


async def predict_all(engine: Engine, jobs: Sequence[Job]) -> list[Any]:
    """
    Answer jobs, so many at a time that all replicas have full batches and others their turn.

    Returns:
        The responses, in the order of the jobs.

    Raises:
        MLServeError: Why one of them has none; the others are given up then.
    """
    if len(jobs) == 1:
        return [await engine.predict(jobs[0])]
    spec = engine.spec
    width = max(1, _FULL_BATCHES * spec.batching.max_size * spec.replicas.max_count)
    answers: list[Any] = [None] * len(jobs)
    left = iter(range(len(jobs)))

    async def work() -> None:
        for number in left:
            answers[number] = await engine.predict(jobs[number])

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(width, len(jobs))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return answers


async def stream_all(engine: Engine, jobs: Sequence[Job]) -> "Merged":
    """
    Begin to stream the chunks of jobs.

    Raises:
        MLServeError: If one of them is not admitted; the others are given up then.
    """
    streams: list[ModelStream] = []
    try:
        for job in jobs:
            streams.append(engine.stream(job))  # noqa: PERF401 - what has begun must be closed
    except BaseException:
        await Merged(streams).aclose()
        raise
    return Merged(streams)


class Merged:
    """
    Several streams as one: each chunk as it comes, with the number of its stream.

    Args:
        streams: The streams; they are closed with this one.
    """

    def __init__(self, streams: Sequence[ModelStream]) -> None:
        self._streams = list(streams)
        self._tasks = TaskSet()
        self._reading: dict[asyncio.Task[Any], int] = {}
        self._has_begun = False

    async def next(self, timeout_s: float = math.inf) -> tuple[int, Any]:
        """
        Give the next chunk of any.

        Raises:
            StopAsyncIteration: When all have ended.
            TimeoutError: If nothing came within `timeout_s` seconds; nothing is lost then.
            MLServeError: What ended one of them before its end.
        """
        if len(self._streams) == 1:
            return 0, await self._streams[0].next(timeout_s)
        if not self._has_begun:
            self._has_begun = True
            for number in range(len(self._streams)):
                self._read(number)
        while self._reading:
            wait_s = None if math.isinf(timeout_s) else timeout_s
            done, _ = await asyncio.wait(
                self._reading, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise TimeoutError
            task = min(done, key=self._reading.__getitem__)
            number = self._reading.pop(task)
            outcome = task.result()
            if isinstance(outcome, StopAsyncIteration):
                continue
            if isinstance(outcome, Exception):
                raise outcome
            self._read(number)
            return number, outcome
        raise StopAsyncIteration

    def ready(self) -> Iterator[tuple[int, Any]]:
        """Give the chunks that are here already, where there is but one stream."""
        if len(self._streams) == 1:
            for chunk in self._streams[0].ready():
                yield 0, chunk

    async def aclose(self) -> None:
        """Leave all of them."""
        await self._tasks.close()
        for stream in self._streams:
            await stream.aclose()

    def _read(self, number: int) -> None:
        self._reading[self._tasks.spawn(_outcome(self._streams[number]))] = number


async def _outcome(stream: ModelStream) -> Any:
    """Give the next chunk, or what came in its place, which is not the task's own failure."""
    try:
        return await stream.next()
    except Exception as exc:  # noqa: BLE001 - is raised again by who reads
        return exc


class Events:
    """
    The protocol's chunks of a stream, as JSON, one by one.

    Args:
        chunks: The model's.
        writer: Makes the protocol's of them.
    """

    def __init__(self, chunks: Merged, writer: Writer) -> None:
        self._chunks = chunks
        self._writer = writer
        self._ready: deque[bytes] = deque()
        self._has_ended = False

    async def next(self, timeout_s: float = math.inf) -> bytes:
        """
        Give the next one.

        Raises:
            StopAsyncIteration: At the end.
            TimeoutError: If nothing came within `timeout_s` seconds; the stream goes on.
            MLServeError: What ended the stream before its end.
        """
        while not self._ready:
            if self._has_ended:
                raise StopAsyncIteration
            try:
                prompt, chunk = await self._chunks.next(timeout_s)
            except StopAsyncIteration:
                self._has_ended = True
                self._ready.extend(self._writer.end())
            else:
                self._ready.extend(self._writer.chunk(prompt, chunk))
        return self._ready.popleft()

    def ready(self) -> Iterator[bytes]:
        """
        Give those that are here already.

        Raises:
            MLServeError: If one cannot be written, after those before it.
        """
        yield from self._take_ready()
        for prompt, chunk in self._chunks.ready():
            self._ready.extend(self._writer.chunk(prompt, chunk))
            yield from self._take_ready()

    def _take_ready(self) -> Iterator[bytes]:
        while self._ready:
            yield self._ready.popleft()

    async def aclose(self) -> None:
        """Leave; may be called again."""
        await self._chunks.aclose()
