"""
The inside of a replica's process: takes requests from HTTP processes into a lane of its own.

Everything here runs on the process's event loop. Requests of all HTTP processes meet in one queue,
so that they share batches.
"""

import asyncio
import socket
from collections import deque
from contextlib import suppress

from mlserve.errors import MLServeError
from mlserve.execution.worker import TaskSet
from mlserve.lane import Lane
from mlserve.processes.board import Board
from mlserve.processes.guest import Guest
from mlserve.processes.watched import HostedJob
from mlserve.processes.wire import connect

__all__ = ["Host"]

_COUNTS = ("batches", "batched", "splits", "out_of_memory")
_SLACK_S = 1.0
_COUNTED_S = 0.02


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
        self._guests: set[Guest] = set()
        # What was counted here by the processes before this one.
        self._before = {name: getattr(self._row, name) for name in _COUNTS}
        self._n_before = self._row.answered
        self._counting: asyncio.TimerHandle | None = None
        # Requests that are run with nothing beside them; the others wait meanwhile.
        self._alone: deque[HostedJob] = deque()
        self._others: deque[HostedJob] = deque()
        self._runs_alone: HostedJob | None = None
        self._begun: set[HostedJob] = set()
        self._streams: set[HostedJob] = set()  # those of them that are streams
        self._answered = asyncio.Event()
        self._answered.set()
        self._streamed = asyncio.Event()
        self._streamed.set()
        self._is_waiting = False
        self._is_noting = False

    @property
    def is_congested(self) -> bool:
        """Whether HTTP processes do not take their answers as fast as they come."""
        congested = [guest for guest in self._guests if guest.link.is_congested]
        if not congested:
            return False
        return any(guest.holds_up for guest in congested) or len(congested) == len(self._guests)

    async def connect(self, index: int, sock: socket.socket) -> None:
        """Take requests from an HTTP process, over a socket that leads to it."""
        guest = Guest(self, self._board.marks(index, self._number))
        await connect(sock, guest.link)
        self._guests.add(guest)

    def tell_all(self, kind: int) -> None:
        """Send a message that holds nothing to every HTTP process."""
        for guest in self._guests:
            guest.link.send((kind,))

    def flush(self) -> None:
        """
        Send now what was answered, as clients wait for it; the board says so before.

        What batches there were it says a moment later: a process that is killed takes along what
        it has counted in its last 20 ms.
        """
        self._note()
        for guest in self._guests:
            guest.link.flush()
        if self._counting is None:  # what nobody waits for, once for many batches
            self._counting = asyncio.get_running_loop().call_later(_COUNTED_S, self.note_counts)

    async def close(self, timeout_s: float) -> None:
        """Send what is answered, and hang up."""
        await self.tasks.close()
        self.note_counts()
        guests = list(self._guests)
        await asyncio.gather(*(guest.link.drain_and_close(timeout_s) for guest in guests))

    async def wait_answered(self) -> None:
        """Wait until what was begun is answered and its last chunk sent, or out of time."""
        left_s = max((job.call.remaining_s for job in self._begun), default=0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(left_s, 0.0) + _SLACK_S):
                await self._answered.wait()

    async def wait_streamed(self) -> None:
        """Wait until every stream has sent its last chunk."""
        await self._streamed.wait()

    def end_streams(self, error: MLServeError) -> None:
        """Answer every stream with an error; their generators are told to stop."""
        for guest in self._guests:
            guest.end_streams(error)

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
        if self._streams or row.streams:
            row.streams = sum(job.stage == "stream" for job in self._streams)
        row.answered = self._n_before + self.n_answered

    def note_counts(self) -> None:
        """Write to the board what batches there were, and what they have taught."""
        if self._counting is not None:
            self._counting.cancel()
            self._counting = None
        row, batcher = self._row, self.lane.batcher
        for name in _COUNTS:
            setattr(row, name, self._before[name] + getattr(batcher, f"n_{name}"))
        row.publish_cost(batcher.cost_model)

    def take(self, job: HostedJob) -> None:
        """Begin a request, unless it or another has to run alone."""
        if job.is_alone or self._alone or self._others or self._runs_alone is not None:
            (self._alone if job.is_alone else self._others).append(job)
            self._go_on()
        else:
            self._begin(job)
        self.note_soon()

    def forget(self, job: HostedJob) -> None:
        """Drop a request that was answered, or that nobody waits for."""
        if job in self._begun:
            self._begun.discard(job)
            self.lane.leave(job)
            if not self._begun:
                self._answered.set()
            if job.is_stream:
                self._streams.discard(job)
                if not self._streams:
                    self._streamed.set()
        else:
            for waiting in (self._alone, self._others):
                with suppress(ValueError):
                    waiting.remove(job)
        if self._alone or self._others:
            self._go_on()
        self.note_soon()

    def lose(self, guest: Guest) -> None:
        """Forget an HTTP process that has ended."""
        self._guests.discard(guest)

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
        elif self._streams:
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
        if not self._begun:
            self._answered.clear()
        self._begun.add(job)
        if job.is_stream:
            self._streams.add(job)
            self._streamed.clear()
        guest: Guest = job.requester  # type: ignore[assignment]  # who else
        guest.begin(job)
