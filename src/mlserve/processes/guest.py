"""
An HTTP process as its replica's process sees it: its requests, and the way of their answers.

Lives on the event loop of the replica's process.
"""

import asyncio
from typing import Any, Protocol

from mlserve.errors import MLServeError, ModelError, ModelFailedError
from mlserve.execution.worker import TaskSet
from mlserve.handler import NO_HEADERS, Call
from mlserve.lane import Lane
from mlserve.observability.access_log import tokens_of_all
from mlserve.observability.loggers import get_logger
from mlserve.processes import messages
from mlserve.processes.board import Mark
from mlserve.processes.frames import Parcel, pack, unpack
from mlserve.processes.watched import HostedJob
from mlserve.processes.wire import Link
from mlserve.streaming import Channel, ChannelClosed, ChannelSink

__all__ = ["FIRST_CREDIT", "Guest", "Hosting"]

logger = get_logger(__name__)

FIRST_CREDIT = 16
"""How many chunks of a stream an HTTP process takes before it has to ask for more."""

_AHEAD = 4
_PATIENCE_S = 1.0


class Hosting(Protocol):
    """The host, as a guest sees it."""

    lane: Lane
    tasks: TaskSet
    is_mute: bool
    n_answered: int

    def take(self, job: HostedJob) -> None:
        """Begin a request when it may begin."""

    def forget(self, job: HostedJob) -> None:
        """Drop a request that was answered, or that nobody waits for."""

    def lose(self, guest: "Guest") -> None:
        """Forget an HTTP process that has ended."""


class Guest:
    """
    One HTTP process.

    Args:
        host: Runs its requests.
        marks: Where they stand on the board.
    """

    def __init__(self, host: Hosting, marks: memoryview) -> None:
        self.link = Link(self._receive, self._lost, self._relax)
        self._patience: asyncio.TimerHandle | None = None
        self._is_slow = False
        self._host = host
        self._marks = marks
        self._jobs: dict[int, HostedJob] = {}
        self._streams: dict[int, tuple[_Pump, asyncio.Task[None]]] = {}
        # Which request has a slot: the next one gets it while a hook may run for the last one.
        self._marked: dict[int, int] = {}

    @property
    def holds_up(self) -> bool:
        """
        Whether it is worth waiting for: it does not take its answers as fast as they come.

        After a second it is not: its own requests bound what is kept for it.
        """
        if not self.link.is_congested or self._is_slow:
            return False
        if self._patience is None:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(_PATIENCE_S, self._lose_patience)
        return True

    def mark(self, job: HostedJob, mark: Mark) -> None:
        """Say on the board where a request is. Any thread."""
        if self._marked.get(job.slot) == job.number:
            self._marks[job.slot] = mark

    def begin(self, job: HostedJob) -> None:
        """Lead a request into the lane."""
        lane = self._host.lane
        lane.reserve(job, is_stream=job.is_stream)
        if not job.is_stream:
            lane.predict(job)
            return
        channel: Channel[Any] = Channel(asyncio.get_running_loop(), _AHEAD)
        job.sink = ChannelSink(channel)
        pump = _Pump(self.link, job, channel)
        self._streams[job.number] = pump, self._host.tasks.spawn(self._pump(job, pump))
        lane.stream(job, channel)

    def answer(self, job: HostedJob, value: Any, error: BaseException | None) -> None:
        """Send the answer of a unary request, unless nobody waits for it any more."""
        if job.number in self._jobs:
            self._end(job, value, error)
        else:
            job.mark(Mark.ANSWERED)

    def end_streams(self, error: MLServeError) -> None:
        """Answer each stream with an error, and tell its generator to stop."""
        for number, (pump, task) in list(self._streams.items()):
            pump.channel.close()
            task.cancel()
            self._end(self._jobs[number], None, error)

    def _lose_patience(self) -> None:
        self._is_slow = True
        self._host.lane.batcher.wake()

    def _relax(self) -> None:
        self._is_slow = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._host.lane.batcher.wake()

    def _receive(self, received: list[tuple[Any, ...]]) -> None:
        for message in received:
            kind = message[0]
            if kind == messages.SUBMIT:
                self._submit(*message[1:])
            elif kind == messages.CANCEL:
                self._cancel(message[1])
            elif kind == messages.CREDIT and message[1] in self._streams:
                self._streams[message[1]][0].allow(message[2])

    def _submit(  # noqa: PLR0913 - the items of a message
        self,
        number: int,
        slot: int,
        flags: int,
        request_id: str,
        deadline: float,
        timeout_s: float,
        priority: int,
        tenant: str | None,
        headers: dict[str, str] | None,
        payload: Parcel,
        traceparent: str | None = None,
    ) -> None:
        call = Call(request_id, headers=headers or NO_HEADERS)
        call.traceparent = traceparent
        call.deadline = deadline
        job = HostedJob(
            self,
            number,
            slot,
            call,
            is_stream=bool(flags & messages.IS_STREAM),
            is_alone=bool(flags & messages.IS_ALONE),
            timeout_s=timeout_s,
            priority=priority,
            tenant=tenant,
        )
        self._jobs[number] = job
        self._marked[slot] = number
        self._marks[slot] = Mark.WAITING  # a hook may have run on for who had it last
        try:
            job.payload = unpack(payload)
        except Exception:
            logger.exception("request.unpack.failed", extra={"request_id": request_id})
            self._end(job, None, ModelError())
        else:
            self._host.take(job)

    async def _pump(self, job: HostedJob, pump: "_Pump") -> None:
        error: Exception | None = None
        try:
            await pump.run()
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the stream's end
            error = exc
        finally:  # one that is cancelled is not answered: its HTTP process is told, or sees the end
            self._streams.pop(job.number, None)
            pump.channel.close()
        if job.number in self._jobs:
            self._end(job, None, error)

    def _end(self, job: HostedJob, value: Any, error: BaseException | None) -> None:
        if self._host.is_mute:
            return
        del self._jobs[job.number]
        if isinstance(error, ModelFailedError) and self._marks[job.slot] == Mark.WAITING:
            self.link.send((messages.NOT_BEGUN, job.number))
            self._host.forget(job)
            return
        kind, packed = messages.END if job.is_stream else messages.RESULT, None
        if error is None and not job.is_stream:
            try:
                packed = pack(value)
            except Exception as exc:
                logger.error("response.pack.failed", exc_info=exc)
                error = ModelError("The model's response cannot leave its process.")
        if error is not None:
            error = error if isinstance(error, MLServeError) else ModelError()
            kind, packed = messages.ERROR, messages.pack_error(error, ModelError())
        times = job.times
        durations = [times.queue_s, times.preprocess_s, times.infer_s, times.postprocess_s]
        if job.call.traceparent is not None:
            durations += times.queue_at, times.preprocess_at, times.infer_at, times.postprocess_at
        annotations = _packed_annotations(job.call.annotations)
        job.mark(Mark.ANSWERED)  # first: with the answer the slot is the next one's
        self.link.send((kind, job.number, durations, times.batch_size, annotations, packed))
        self._host.n_answered += 1
        self._host.forget(job)

    def _cancel(self, number: int) -> None:
        if (job := self._jobs.pop(number, None)) is None:
            return  # its answer is on the way
        job.call.cancel()
        if (stream := self._streams.pop(number, None)) is not None:
            stream[0].channel.close()
            stream[1].cancel()  # it may not have begun
        self._host.forget(job)

    def _lost(self) -> None:
        self._marked.clear()  # the marks belong to the next process of that number
        self._host.lose(self)
        self._relax()
        for number in list(self._jobs):
            self._cancel(number)

    def __repr__(self) -> str:
        return f"<Guest with {len(self._jobs)} requests>"


class _Pump:
    """Sends the chunks of a stream as fast as its HTTP process takes them."""

    def __init__(self, link: Link, job: HostedJob, channel: Channel[Any]) -> None:
        self.channel = channel
        self._link = link
        self._job = job
        self._told: dict[str, int] = {}
        self._credit = FIRST_CREDIT
        self._has_credit = asyncio.Event()
        self._has_credit.set()

    def allow(self, n: int) -> None:
        """Let it send so many more."""
        self._credit += n
        self._has_credit.set()

    async def run(self) -> None:
        """
        Send what comes, to the end.

        Raises:
            MLServeError: What ended the stream before its end.
        """
        while True:
            try:
                chunk = await self.channel.get()
            except ChannelClosed:
                return
            while self._credit == 0:
                self._has_credit.clear()
                await self._has_credit.wait()
            self._credit -= 1
            try:
                packed = pack(chunk)
            except Exception as exc:
                logger.exception("chunk.pack.failed")
                raise ModelError("A chunk of the model cannot leave its process.") from exc
            # Not only at the end: who leaves before has read them all the same.
            tokens = tokens_of_all([self._job.call.annotations])
            if tokens == self._told:
                self._link.send((messages.CHUNK, self._job.number, packed))
            else:
                self._told = tokens
                self._link.send((messages.CHUNK, self._job.number, packed, tokens))


def _packed_annotations(annotations: dict[str, Any]) -> Any:
    """Give what hooks have noted as it can be sent; what cannot be is left out."""
    if not annotations:
        return None
    try:
        return pack(annotations)
    except Exception:
        logger.exception("annotations.pack.failed")
        return None
