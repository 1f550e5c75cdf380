"""
The inside of a replica's process: takes requests from HTTP processes into a lane of its own.

Everything here runs on the process's event loop. Requests of all HTTP processes meet in one queue,
so that they share batches.
"""

import asyncio
import socket
from collections import deque
from contextlib import suppress
from typing import Any

from mlserve.errors import MLServeError, ModelError, ModelFailedError
from mlserve.execution.worker import TaskSet
from mlserve.handler import NO_HEADERS, Call
from mlserve.lane import Lane
from mlserve.observability.loggers import get_logger
from mlserve.processes import messages
from mlserve.processes.board import Board, Mark
from mlserve.processes.frames import Packed, pack
from mlserve.processes.watched import HostedJob
from mlserve.processes.wire import Link, connect
from mlserve.streaming import Channel, ChannelClosed, ChannelSink

__all__ = ["FIRST_CREDIT", "Host"]

logger = get_logger(__name__)

FIRST_CREDIT = 16
"""How many chunks of a stream an HTTP process takes before it has to ask for more."""

_AHEAD = 4
_SLACK_S = 1.0


class Host:
    """
    Serves the HTTP processes of one model with one replica.

    Args:
        lane: Its queue and its replica.
        board: Where its figures stand.
        number: Its number.
        has_costs: Whether its requests cost more or less than one another.
    """

    def __init__(self, lane: Lane, board: Board, number: int, *, has_costs: bool) -> None:
        self.lane = lane
        self.tasks = TaskSet()
        self.is_mute = False
        """Whether nothing is answered any more, as this process is about to end. Any thread."""
        self.n_answered = 0
        """How many requests were answered."""
        self._board = board
        self._number = number
        self._row = board.replicas[number]
        self._has_costs = has_costs
        self._clients: set[_Client] = set()
        # What was counted here by the processes before this one.
        self._before = {name: getattr(self._row, name) for name in _COUNTS}
        self._n_before = self._row.answered
        # Requests that are run with nothing beside them; the others wait meanwhile.
        self._alone: deque[HostedJob] = deque()
        self._others: deque[HostedJob] = deque()
        self._runs_alone: HostedJob | None = None
        self._begun: set[HostedJob] = set()
        self._answered = asyncio.Event()
        self._answered.set()
        self._is_waiting = False
        self._is_noting = False

    @property
    def is_congested(self) -> bool:
        """Whether an HTTP process does not take its answers as fast as they come."""
        return any(client.link.is_congested for client in self._clients)

    async def connect(self, index: int, sock: socket.socket) -> None:
        """Take requests from an HTTP process, over a socket that leads to it."""
        client = _Client(self, self._board.marks(index, self._number))
        await connect(sock, client.link)
        self._clients.add(client)

    def tell_all(self, kind: int) -> None:
        """Send a message that holds nothing to every HTTP process."""
        for client in self._clients:
            client.link.send((kind,))

    async def close(self, timeout_s: float) -> None:
        """Send what is answered, and hang up."""
        await self.tasks.close()
        clients = list(self._clients)
        await asyncio.gather(*(client.link.drain_and_close(timeout_s) for client in clients))

    async def wait_answered(self) -> None:
        """Wait until what was begun is answered and its last chunk sent, or out of time."""
        left_s = max((job.call.remaining_s for job in self._begun), default=0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(left_s, 0.0) + _SLACK_S):
                await self._answered.wait()

    def note_soon(self) -> None:
        """Write the figures to the board at the end of this turn of the event loop."""
        if not self._is_noting:
            self._is_noting = True
            asyncio.get_running_loop().call_soon(self._note)

    def _note(self) -> None:
        self._is_noting = False
        row, lane, begun = self._row, self.lane, self._begun
        n_held = len(begun) + len(self._alone) + len(self._others)
        row.held = n_held
        row.cost = sum(job.cost for job in begun) if self._has_costs else n_held
        row.active = len(begun) - lane.queue.occupied
        row.running = lane.pool.n_running
        row.streams = sum(job.is_stream and job.stage == "stream" for job in begun)
        for name in _COUNTS:
            setattr(row, name, self._before[name] + getattr(lane.batcher, f"n_{name}"))
        row.answered = self._n_before + self.n_answered
        row.publish_cost(lane.batcher.cost_model)

    def take(self, job: HostedJob) -> None:
        """Begin a request, unless it or another has to run alone."""
        (self._alone if job.is_alone else self._others).append(job)
        self._go_on()
        self.note_soon()

    def forget(self, job: HostedJob) -> None:
        """Drop a request that was answered, or that nobody waits for."""
        if job in self._begun:
            self._begun.discard(job)
            self.lane.leave(job)
            if not self._begun:
                self._answered.set()
        else:
            for waiting in (self._alone, self._others):
                with suppress(ValueError):
                    waiting.remove(job)
        if self._alone or self._others:
            self._go_on()
        self.note_soon()

    def lose(self, client: "_Client") -> None:
        """Forget an HTTP process that has ended."""
        self._clients.discard(client)

    def _go_on(self) -> None:
        """Begin what may begin now."""
        if self._runs_alone in self._begun:
            return
        if (self._runs_alone is not None or self._alone) and not self._begun:
            if self.lane.pool.n_running:  # at work for somebody who has left
                self._go_on_when_idle()
                return
            self._runs_alone = None
        if self._alone and not self._begun:
            self._runs_alone = self._alone.popleft()
            self._begin(self._runs_alone)
        elif not self._alone:
            while self._others:
                self._begin(self._others.popleft())
        elif any(job.is_stream for job in self._begun):
            # What is to run alone may have to wait for long, and short requests need not.
            waiting, self._others = self._others, deque()
            for job in waiting:
                if job.is_stream:
                    self._others.append(job)
                else:
                    self._begin(job)

    def _go_on_when_idle(self) -> None:
        async def wait() -> None:
            await self.lane.pool.wait_idle()
            self._is_waiting = False
            self._go_on()

        if not self._is_waiting:
            self._is_waiting = True
            self.tasks.spawn(wait())

    def _begin(self, job: HostedJob) -> None:
        self._begun.add(job)
        self._answered.clear()
        owner: _Client = job.owner  # type: ignore[assignment]  # who else
        owner.begin(job)


_COUNTS = ("batches", "batched", "splits", "out_of_memory")


class _Client:
    """An HTTP process, as its replica sees it."""

    def __init__(self, host: Host, marks: memoryview) -> None:
        self.link = Link(self._receive, self._lost, host.lane.batcher.wake)
        self._host = host
        self._marks = marks
        self._jobs: dict[int, HostedJob] = {}
        self._streams: dict[int, tuple[_Pump, asyncio.Task[None]]] = {}
        # Which request has a slot: the next one gets it while a hook may run for the last one.
        self._marked: dict[int, int] = {}

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
        pump = _Pump(self.link, job.number, channel)
        self._streams[job.number] = pump, self._host.tasks.spawn(self._pump(job, pump))
        lane.stream(job, channel)

    def answer(self, job: HostedJob, value: Any, error: BaseException | None) -> None:
        """Send the answer of a unary request, unless nobody waits for it any more."""
        if job.number in self._jobs:
            self._end(job, value, error)
        else:
            job.mark(Mark.ANSWERED)

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
        headers: dict[str, str] | None,
        payload: Packed,
    ) -> None:
        call = Call(request_id, headers=headers or NO_HEADERS)
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
        )
        self._jobs[number] = job
        if slot >= 0:
            self._marked[slot] = number
        try:
            job.payload = payload.unpack()
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
        durations = (times.queue_s, times.preprocess_s, times.infer_s, times.postprocess_s)
        annotations = _packed_annotations(job.call.annotations)
        self.link.send((kind, job.number, durations, times.batch_size, annotations, packed))
        job.mark(Mark.ANSWERED)
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
        for number in list(self._jobs):
            self._cancel(number)

    def __repr__(self) -> str:
        return f"<_Client with {len(self._jobs)} requests>"


class _Pump:
    """Sends the chunks of a stream as fast as its HTTP process takes them."""

    def __init__(self, link: Link, number: int, channel: Channel[Any]) -> None:
        self.channel = channel
        self._link = link
        self._number = number
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
            self._link.send((messages.CHUNK, self._number, packed))


def _packed_annotations(annotations: dict[str, Any]) -> Any:
    """Give what hooks have noted as it can be sent; what cannot be is left out."""
    if not annotations:
        return None
    try:
        return pack(annotations)
    except Exception:
        logger.exception("annotations.pack.failed")
        return None
